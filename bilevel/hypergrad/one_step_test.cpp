#include "bilevel/hypergrad/one_step.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::one_step_test {
namespace {

using namespace testing;

constexpr int64_t kSteps = 6;

// ∂x f + (∂Φ/∂g ∂x∂y g)ᵀ ∂y f, where one step moves y by Φ's derivative ∂Φ/∂g = diag(`gain`) times the change of its gradient.
at::Tensor formula(const Problem& problem, const at::Tensor& x, const PlainRule& rule, const at::Tensor& gain) {
  const at::Tensor y = unrolled_end(problem, x, rule, kSteps), previous = unrolled_end(problem, x, rule, kSteps - 1);
  return outer_grad_x(problem, x, y) + cross(problem, x, previous).t().mv(gain * outer_grad_y(problem, x, y));
}

at::Tensor inner_gradient(const Problem& problem, const at::Tensor& x, const at::Tensor& y) {
  return AutodiffOracle(problem).inner(x, y, Batch{}).y;
}

// y' = y − lr m̂/(√v̂ + ε) by g, with the moments before the step held fixed (Kingma & Ba 2015, algorithm 1).
at::Tensor gain_of_adam(const Problem& problem, const at::Tensor& x, const PlainRule& rule) {
  at::Tensor m, v, g;
  for (int64_t t = 0; t < kSteps; ++t) {
    g = inner_gradient(problem, x, unrolled_end(problem, x, rule, t));
    m = t == 0 ? (1 - rule.beta1) * g : rule.beta1 * m + (1 - rule.beta1) * g;
    v = t == 0 ? (1 - rule.beta2) * g * g : rule.beta2 * v + (1 - rule.beta2) * g * g;
  }
  const double c1 = 1 - std::pow(rule.beta1, kSteps), c2 = 1 - std::pow(rule.beta2, kSteps);
  const at::Tensor root = (v / c2).sqrt(), below = root + rule.eps;
  return -rule.lr * ((1 - rule.beta1) / c1 / below - (m / c1) * ((1 - rule.beta2) * g / (c2 * root)) / (below * below));
}

void is_the_formula(const Problem& problem, const PlainRule& rule, const at::Tensor& gain) {
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver(rule, kSteps);
  const at::Tensor expected = formula(problem, x, rule, gain);
  const Hypergradient h = estimate(OneStep(), problem, solver, x);
  EXPECT_LT(relative_error(h.value, expected), 1e-10);
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
  EXPECT_EQ(h.certificate.differentiates, "F_T, last step");
  expect_nothing_else_gives(expected, "one-step", problem, solver, x, 1e-3);
}

TEST(OneStep, IsTheLastStepOfNesterovsMomentum) {
  const MlpProblem problem;
  PlainRule rule;
  rule.lr = 0.2, rule.momentum = 0.8, rule.nesterov = true;  // y' = y − lr (g + μ (μ m + g))
  is_the_formula(problem, rule, at::scalar_tensor(-rule.lr * (1 + rule.momentum), at::kDouble));
}

TEST(OneStep, IsTheLastStepOfAdam) {
  const MlpProblem problem;
  PlainRule rule;
  rule.kind = PlainRule::Kind::kAdam;
  rule.lr = 0.05;
  is_the_formula(problem, rule, gain_of_adam(problem, problem.initial_outer(), rule));
}

// The error of the implicit part is that of the contraction: (I − ηA) in place of 0.
TEST(OneStep, MissesTheHypergradientByTheContractionOfTheSolver) {
  const QuadraticProblem problem({.condition = 10.0});
  const at::Tensor x = problem.initial_outer();
  PlainRule rule;
  rule.lr = 0.8;
  const Hypergradient h = estimate(OneStep(), problem, rule_solver(rule, 600), x);
  const at::Tensor b = outer_grad_y(problem, x, problem.solution(x));
  const at::Tensor contraction = at::eye(8, at::kDouble) - rule.lr * problem.A();
  const at::Tensor missed = problem.B().t().mv(at::linalg_solve(problem.A(), contraction.mv(b)));
  EXPECT_LT(relative_error(problem.hypergradient(x) - h.value, missed), 1e-10);
  EXPECT_GT(missed.norm().item<double>(), 0.1 * h.value.norm().item<double>());
}

TEST(OneStep, IsExactWhereOneStepSolves) {
  const QuadraticProblem problem({.condition = 1.0});  // A = I
  const at::Tensor x = problem.initial_outer();
  PlainRule rule;
  rule.lr = 1.0;
  EXPECT_LT(relative_error(estimate(OneStep(), problem, rule_solver(rule, 1), x).value, problem.hypergradient(x)), 1e-12);
}

}  // namespace
}  // namespace bilevel::one_step_test
