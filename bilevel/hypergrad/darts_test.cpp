#include "bilevel/hypergrad/darts.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/hypergrad/t1_t2.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::darts_test {
namespace {

using namespace testing;

constexpr int64_t kSteps = 6;

PlainRule nesterov() {
  PlainRule rule;
  rule.lr = 0.2, rule.momentum = 0.8, rule.nesterov = true;
  return rule;
}

at::Tensor inner_grad_x(const Problem& problem, const at::Tensor& x, const at::Tensor& y) {
  const at::AutoGradMode grad_mode(true);
  const at::Tensor variable = x.detach().clone().requires_grad_(true);
  return torch::autograd::grad({problem.inner_loss(variable, y, Batch{})}, {variable})[0];
}

// ∂x f(y_T) − η [∂x g(y_{T−1} + ε b) − ∂x g(y_{T−1} − ε b)]/(2ε),   b = ∂y f(y_T), ε = radius/‖b‖
at::Tensor formula(const Problem& problem, const at::Tensor& x, const PlainRule& rule, double radius) {
  const at::Tensor y = unrolled_end(problem, x, rule, kSteps), previous = unrolled_end(problem, x, rule, kSteps - 1);
  const at::Tensor b = outer_grad_y(problem, x, y);
  const at::Tensor step = radius / b.norm() * b;
  const at::Tensor difference = inner_grad_x(problem, x, previous + step) - inner_grad_x(problem, x, previous - step);
  return outer_grad_x(problem, x, y) - rule.lr * difference * b.norm() / (2 * radius);
}

TEST(Darts, IsItsFormulaAtEveryRadius) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver(nesterov(), kSteps);
  for (const double radius : {0.01, 0.1, 1.0}) {
    EXPECT_LT(relative_error(estimate(Darts(radius), problem, solver, x).value, formula(problem, x, nesterov(), radius)), 1e-10);
  }
  const Hypergradient h = estimate(Darts(), problem, solver, x);  // the paper's 0.01
  const at::Tensor expected = formula(problem, x, nesterov(), 0.01);
  EXPECT_LT(relative_error(h.value, expected), 1e-10);
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
  // t1-t2 is the same up to the error of the difference, which this network shows.
  expect_nothing_else_gives(expected, "darts", problem, solver, x, 1e-7);
}

TEST(Darts, TendsToT1T2WithTheSquareOfTheRadius) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver(nesterov(), kSteps);
  const at::Tensor limit = estimate(T1T2(), problem, solver, x).value;
  const auto error = [&](double radius) { return relative_error(estimate(Darts(radius), problem, solver, x).value, limit); };
  EXPECT_NEAR(error(0.1) / error(0.05), 4.0, 0.1);
  EXPECT_GT(error(0.1), 1e-5);
  EXPECT_LT(error(1e-3), 1e-7);
}

TEST(Darts, HasNoErrorWhereTheLossIsQuadratic) {
  const QuadraticProblem problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver(nesterov(), kSteps);
  EXPECT_LT(relative_error(estimate(Darts(), problem, solver, x).value, estimate(T1T2(), problem, solver, x).value), 1e-11);
}

// y enters ∂x g through a tensor that autograd cannot follow, so that any second derivative would miss it.
class FirstOrderProblem final : public TestProblem {
 public:
  FirstOrderProblem() {
    outer_layout_.add("x", {4});
    inner_layout_.add("y", {4});
    x0_ = at::linspace(0.2, 0.8, 4, at::kDouble);
    y0_ = at::linspace(-0.5, 1.0, 4, at::kDouble);
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return (x * y.detach()).sum() + (x.detach() * y).sum() + 0.5 * y.square().sum();  // its value is not, its gradients are x·y's
  }
  at::Tensor outer_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const override {
    return 0.5 * (y - 1).square().sum();
  }
};

TEST(Darts, NeedsNoSecondDerivative) {
  const FirstOrderProblem problem;
  const at::Tensor x = problem.initial_outer();
  const PlainRule rule;  // y' = y − lr (x + y)
  const RuleSolver solver = rule_solver(rule, kSteps);
  const at::Tensor y = estimate(Darts(), problem, solver, x).q / rule.lr + 1;  // of q = lr (y − 1)
  EXPECT_LT(relative_error(estimate(Darts(), problem, solver, x).value, -rule.lr * (y - 1)), 1e-11);
  EXPECT_EQ(estimate(T1T2(), problem, solver, x).value.abs().max().item<double>(), 0.0);  // which t1-t2 does
}

TEST(Darts, RefusesARadiusThatIsNone) {
  for (const double radius : {0.0, -0.1, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    EXPECT_THROW(Darts{radius}, Error) << radius;
  }
}

}  // namespace
}  // namespace bilevel::darts_test
