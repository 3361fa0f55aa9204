#include "bilevel/hypergrad/t1_t2.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "bilevel/hypergrad/one_step.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::t1_t2_test {
namespace {

using namespace testing;

constexpr int64_t kSteps = 6;

// ∂x f(y_T) − η (∂x∂y g at y_{T−1})ᵀ ∂y f(y_T)
at::Tensor formula(const Problem& problem, const at::Tensor& x, const PlainRule& rule) {
  const at::Tensor y = unrolled_end(problem, x, rule, kSteps), previous = unrolled_end(problem, x, rule, kSteps - 1);
  return outer_grad_x(problem, x, y) - rule.lr * cross(problem, x, previous).t().mv(outer_grad_y(problem, x, y));
}

TEST(T1T2, IsItsFormulaWhateverTheRule) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  PlainRule nesterov, adam;
  nesterov.lr = 0.2, nesterov.momentum = 0.8, nesterov.nesterov = true;
  adam.kind = PlainRule::Kind::kAdam, adam.lr = 0.05;
  for (const PlainRule& rule : {nesterov, adam}) {
    const RuleSolver solver = rule_solver(rule, kSteps);
    const at::Tensor expected = formula(problem, x, rule);
    const Hypergradient h = estimate(T1T2(), problem, solver, x);
    EXPECT_LT(relative_error(h.value, expected), 1e-11);
    EXPECT_LT(relative_error(h.q, rule.lr * outer_grad_y(problem, x, unrolled_end(problem, x, rule, kSteps))), 1e-11);
    EXPECT_EQ(h.grade, Grade::kOk) << h.message;
    // darts has the same quantity up to the error of its difference, radius² of the curvature; on this network that shows.
    expect_nothing_else_gives(expected, "t1-t2", problem, solver, x, 1e-7);
  }
}

TEST(T1T2, IsTheLastStepOfPlainGradientDescentAndOfNoOtherRule) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  PlainRule rule;
  rule.lr = 0.2;
  const auto distance = [&] {
    const RuleSolver solver = rule_solver(rule, kSteps);
    return relative_error(estimate(T1T2(), problem, solver, x).value, estimate(OneStep(), problem, solver, x).value);
  };
  EXPECT_LT(distance(), 1e-12);
  rule.momentum = 0.8, rule.nesterov = true;
  EXPECT_GT(distance(), 1e-2);
}

TEST(T1T2, IsExactWhereOneStepSolves) {
  const QuadraticProblem problem({.condition = 1.0});  // A = I
  const at::Tensor x = problem.initial_outer();
  PlainRule rule;
  rule.lr = 1.0;
  EXPECT_LT(relative_error(estimate(T1T2(), problem, rule_solver(rule, 1), x).value, problem.hypergradient(x)), 1e-12);
}

}  // namespace
}  // namespace bilevel::t1_t2_test
