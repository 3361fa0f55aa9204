#include "bilevel/hypergrad/sama.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/darts.h"
#include "bilevel/hypergrad/identity.h"
#include "bilevel/hypergrad/one_step.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel {
namespace {

using namespace testing;

at::Tensor gradient_of(const Problem& problem, const at::Tensor& x, const at::Tensor& y, bool by_x) {
  const at::AutoGradMode grad_mode(true);
  const at::Tensor xv = x.detach().clone().requires_grad_(true), yv = y.detach().clone().requires_grad_(true);
  return torch::autograd::grad({problem.inner_loss(xv, yv, Batch{})}, {by_x ? xv : yv})[0];
}

// The formula with v given.
at::Tensor by_differences(const Problem& problem, const at::Tensor& x, const at::Tensor& y, const at::Tensor& v, double radius) {
  const double epsilon = radius / v.norm().item<double>();
  return outer_grad_x(problem, x, y) -
         (gradient_of(problem, x, y + epsilon * v, true) - gradient_of(problem, x, y - epsilon * v, true)) / (2 * epsilon);
}

// The diagonal of the paper's code for Adam (leopard-ai/betty): no bias correction, (√s + ε)³ below, with the moments before the
// last step and the last gradient.
TEST(Sama, HasTheDiagonalOfThePaperWhereBiasCorrectionAndEpsilonDoNotCount) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer();
  const double lr = 0.02, beta1 = 0.7, beta2 = 0.9;
  const int64_t T = 150;  // 0.9¹⁵⁰ = 1e-7, and the gradient is not yet rounding
  const PlainRule rule{.kind = PlainRule::Kind::kAdam, .lr = lr, .beta1 = beta1, .beta2 = beta2, .eps = 1e-14};
  at::Tensor y = problem.initial_inner(x, 0).detach(), m = at::zeros_like(y), s = at::zeros_like(y), m_old, s_old, g;
  for (int64_t t = 0; t < T; ++t) {
    g = gradient_of(problem, x, y, false);
    m_old = m, s_old = s;
    m = beta1 * m + (1 - beta1) * g;
    s = beta2 * s + (1 - beta2) * g * g;
    const double n = static_cast<double>(t + 1);
    y = y - lr * (m / (1 - std::pow(beta1, n))) / ((s / (1 - std::pow(beta2, n))).sqrt() + rule.eps);
  }
  const at::Tensor diagonal = lr * ((1 - beta1) * beta2 * s_old - beta1 * (1 - beta2) * g * m_old) / s.sqrt().pow(3);
  const at::Tensor expected = by_differences(problem, x, y, diagonal * outer_grad_y(problem, x, y), 1.0);
  const Hypergradient h = estimate(Sama(), problem, rule_solver(rule, T), x);
  EXPECT_LT(relative_error(h.value, expected), 1e-6);
  EXPECT_GT(relative_error(h.direct, expected), 0.01);
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
}

TEST(Sama, KeepsTheExactDiagonalOfTheLastStepOtherwise) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  const PlainRule rule{.kind = PlainRule::Kind::kAdam, .lr = 0.05};
  const int64_t T = 5;
  // ∂Φ/∂g at the last step by plain differentiation of the step as Adam's paper writes it.
  at::Tensor y = problem.initial_inner(x, 0).detach(), m = at::zeros_like(y), s = at::zeros_like(y), diagonal;
  for (int64_t t = 0; t < T; ++t) {
    const at::AutoGradMode grad_mode(true);
    const at::Tensor g = gradient_of(problem, x, y, false).requires_grad_(true);
    const double n = static_cast<double>(t + 1);
    const at::Tensor m_new = 0.9 * m + 0.1 * g, s_new = 0.999 * s + 0.001 * g * g;
    const at::Tensor u = 0.05 * (m_new / (1 - std::pow(0.9, n))) / ((s_new / (1 - std::pow(0.999, n))).sqrt() + 1e-8);
    diagonal = torch::autograd::grad({u.sum()}, {g})[0];
    m = m_new.detach(), s = s_new.detach(), y = (y - u).detach();
  }
  const at::Tensor expected = by_differences(problem, x, y, diagonal * outer_grad_y(problem, x, y), 0.3);
  const RuleSolver solver = rule_solver(rule, T);
  EXPECT_LT(relative_error(estimate(Sama({.radius = 0.3}), problem, solver, x).value, expected), 1e-9);
  EXPECT_GT(relative_error(estimate(Sama(), problem, solver, x).value, expected), 1e-3);  // radius 1
  EXPECT_LT((diagonal.min()).item<double>(), diagonal.max().item<double>() / 2);          // no multiple of the identity
  expect_nothing_else_gives(expected, "sama", problem, solver, x, 0.005);
}

TEST(Sama, IsIdentityByDifferencesForPlainGradientDescent) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver({.lr = 0.1}, 6);
  const at::Tensor identity = estimate(Identity(), problem, solver, x).value;
  const at::Tensor y = unrolled_end(problem, x, {.lr = 0.1}, 6);
  double last = 1;
  for (const double radius : {1e-1, 1e-2, 1e-3}) {  // the difference's error is of second order
    const double error = relative_error(estimate(Sama({.radius = radius}), problem, solver, x).value, identity);
    EXPECT_LT(error, 0.02 * last);
    last = error;
  }
  EXPECT_LT(last, 1e-6);
  EXPECT_LT(relative_error(estimate(Sama(), problem, solver, x).value,
                           by_differences(problem, x, y, 0.1 * outer_grad_y(problem, x, y), 1.0)),
            1e-9);
}

// What the paper keeps the rule for: with Adam it points where the exact derivative of the last step does, and darts does not.
TEST(Sama, IsNearerToTheExactLastStepThanDarts) {
  const MlpProblem problem({.inner_samples = 60});
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver({.kind = PlainRule::Kind::kAdam, .lr = 0.03}, 40);
  const auto implicit_part = [&](const Estimator& estimator) {
    const Hypergradient h = estimate(estimator, problem, solver, x);
    return h.value - h.direct;
  };
  const at::Tensor exact = implicit_part(OneStep());
  const auto cosine = [&](const at::Tensor& v) { return (v.dot(exact) / (v.norm() * exact.norm())).item<double>(); };
  EXPECT_GT(cosine(implicit_part(Sama({.radius = 0.01}))), cosine(implicit_part(Darts())) + 0.05);
  EXPECT_GT(cosine(implicit_part(Sama({.radius = 0.01}))), 0.9);
}

TEST(Sama, RefusesSolversWithoutStepsAndBadRadii) {
  const QuadraticProblem problem;
  EXPECT_EQ(Sama().objections(problem, Lbfgs({})).size(), 1u);
  EXPECT_TRUE(Sama().objections(problem, rule_solver({.lr = 0.1}, 3)).empty());
  EXPECT_THROW(Sama({.radius = 0}), Error);
}

}  // namespace
}  // namespace bilevel
