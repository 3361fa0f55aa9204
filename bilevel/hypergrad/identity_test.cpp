#include "bilevel/hypergrad/identity.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::identity_test {
namespace {

using namespace testing;

constexpr int64_t kSteps = 6;

// ∂x f − η (∂x∂y g)ᵀ ∂y f at y_T
at::Tensor formula(const Problem& problem, const at::Tensor& x, const PlainRule& rule) {
  const at::Tensor y = unrolled_end(problem, x, rule, kSteps);
  return outer_grad_x(problem, x, y) - rule.lr * cross(problem, x, y).t().mv(outer_grad_y(problem, x, y));
}

TEST(Identity, IsItsFormulaWhateverTheRule) {
  const MlpProblem mlp;
  const LogisticWeightsProblem logistic;
  PlainRule nesterov, adam;
  nesterov.lr = 0.2, nesterov.momentum = 0.8, nesterov.nesterov = true;
  adam.kind = PlainRule::Kind::kAdam, adam.lr = 0.05;
  for (const Problem* problem : {static_cast<const Problem*>(&mlp), static_cast<const Problem*>(&logistic)}) {
    const at::Tensor x = problem->initial_outer();
    for (const PlainRule& rule : {nesterov, adam}) {
      const RuleSolver solver = rule_solver(rule, kSteps);
      const at::Tensor expected = formula(*problem, x, rule);
      const Hypergradient h = estimate(Identity(), *problem, solver, x);
      EXPECT_LT(relative_error(h.value, expected), 1e-11);
      EXPECT_EQ(h.grade, Grade::kOk) << h.message;
      expect_nothing_else_gives(expected, "identity", *problem, solver, x, 1e-4);
    }
  }
}

TEST(Identity, HasABiasThatNoNumberOfInnerStepsRemoves) {
  const QuadraticProblem problem({.condition = 10.0});
  const at::Tensor x = problem.initial_outer();
  PlainRule rule;
  rule.lr = 0.8;
  const at::Tensor b = outer_grad_y(problem, x, problem.solution(x));
  const at::Tensor bias = problem.B().t().mv(at::linalg_solve(problem.A(), b) - rule.lr * b);
  const at::Tensor value = estimate(Identity(), problem, rule_solver(rule, 600), x).value;
  EXPECT_LT(relative_error(problem.hypergradient(x) - value, bias), 1e-10);
  EXPECT_GT(bias.norm().item<double>(), 0.1 * value.norm().item<double>());
}

TEST(Identity, IsExactWhereTheStepSizeIsTheInverseHessian) {
  const QuadraticProblem problem({.condition = 1.0});  // A = I
  const at::Tensor x = problem.initial_outer();
  PlainRule rule;
  rule.lr = 1.0;
  EXPECT_LT(relative_error(estimate(Identity(), problem, rule_solver(rule, 1), x).value, problem.hypergradient(x)), 1e-12);
}

}  // namespace
}  // namespace bilevel::identity_test
