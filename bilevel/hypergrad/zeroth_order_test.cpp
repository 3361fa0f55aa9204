#include "bilevel/hypergrad/zeroth_order.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel {
namespace {

using namespace testing;

// Inside three standard errors, as the certificate has it; the 2-norm of the error has the 2-norm of the standard errors as its
// root mean square.
void expect_in_expectation(const Hypergradient& h, const at::Tensor& expected) {
  ASSERT_TRUE(h.certificate.standard_error.has_value());
  const double error = (h.value - expected).norm().item<double>();
  EXPECT_LT(error, 3 * *h.certificate.standard_error);
  EXPECT_LT(3 * *h.certificate.standard_error, 0.2 * expected.norm().item<double>()) << "too few samples to tell";
  EXPECT_FALSE(h.certificate.error_bound.has_value());
}

// F_T of a quadratic under gradient descent is a quadratic: smoothing leaves its gradient as it is, whatever σ.
TEST(ZerothOrder, HasTheGradientOfAQuadraticAsItsExpectation) {
  const QuadraticProblem problem({.direct = 0.3});
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver({.lr = 1.0}, 6);
  const at::Tensor expected = unrolled_gradient(problem, x, {.lr = 1.0}, 6);
  for (const double sigma : {0.01, 2.0}) {
    expect_in_expectation(estimate(ZerothOrder({.samples = 1600, .sigma = sigma}), problem, solver, x), expected);
  }
  // Neither F's nor the direct term's: three standard errors would not do.
  const Hypergradient h = estimate(ZerothOrder({.samples = 3000}), problem, solver, x);
  EXPECT_GT((h.value - problem.hypergradient(x)).norm().item<double>(), 6 * *h.certificate.standard_error);
  EXPECT_GT((h.value - h.direct).norm().item<double>(), 6 * *h.certificate.standard_error);
}

class Quartic final : public TestProblem {
 public:
  Quartic() {
    outer_layout_.add("x", {3});
    inner_layout_.add("y", {3});
    x0_ = at::tensor({0.5, -1.0, 0.25}, at::kDouble);
    y0_ = at::zeros({3}, at::kDouble);
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return 0.5 * (y - x).square().sum();
  }
  at::Tensor outer_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const override { return 0.25 * y.pow(4).sum(); }
};

// With y = x after one step of size 1, F = ¼ Σ x⁴, and E ∇F(x + σu) = x³ + 3σ²x: far from ∇F where σ is large, and the scale
// tells a division by σ² or by σ alone.
TEST(ZerothOrder, DifferentiatesTheSmoothedFunction) {
  const Quartic problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver({.lr = 1.0}, 1);
  for (const double sigma : {0.3, 1.0}) {
    const Hypergradient h = estimate(ZerothOrder({.samples = 6000, .sigma = sigma}), problem, solver, x);
    expect_in_expectation(h, x.pow(3) + 3 * sigma * sigma * x);
    if (sigma < 1.0) continue;
    EXPECT_GT((h.value - x.pow(3)).norm().item<double>(), 10 * *h.certificate.standard_error) << "the gradient of F itself";
  }
}

TEST(ZerothOrder, TellsItsStandardErrorRight) {
  const QuadraticProblem problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver({.lr = 0.5}, 6);
  const at::Tensor expected = unrolled_gradient(problem, x, {.lr = 0.5}, 6);
  // For a linear function dᵢ uᵢ = uᵢ uᵢᵀ∇F, whose variance is (dx + 1)‖∇F‖².
  const Hypergradient h = estimate(ZerothOrder({.samples = 2000, .sigma = 1e-3}), problem, solver, x);
  const double exact = std::sqrt(6.0 / 2000) * expected.norm().item<double>();
  EXPECT_NEAR(*h.certificate.standard_error / exact, 1.0, 0.1);
  EXPECT_FALSE(estimate(ZerothOrder({.samples = 1}), problem, solver, x).certificate.standard_error.has_value());
}

TEST(ZerothOrder, StartsItsSolvesWhereTheSolveBegan) {
  const QuadraticProblem problem({.condition = 50.0});
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x) + 1.0;
  const RuleSolver solver = rule_solver({.lr = 0.5}, 2);
  const Hypergradient h = estimate(ZerothOrder({.samples = 1, .sigma = 1e-3}), problem, solver, x, {.y = y});
  const at::Tensor u = Stream(0, "zeroth-order").at(0).normal({x.size(0)});
  const auto F_T = [&](const at::Tensor& at_x) {
    at::Tensor y_t = y;
    for (int i = 0; i < 2; ++i) y_t = y_t - 0.5 * (problem.A().mv(y_t) - problem.A().mv(problem.solution(at_x)));
    return problem.outer_loss(at_x, y_t, Batch{}).item<double>();
  };
  EXPECT_LT(relative_error(h.value, (F_T(x + 1e-3 * u) - F_T(x - 1e-3 * u)) / 2e-3 * u), 1e-8);
}

TEST(ZerothOrder, SeesAStartThatDependsOnX) {
  const SinusoidMamlProblem problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver({.lr = 0.1}, 2);
  const Hypergradient h = estimate(ZerothOrder({.samples = 1, .sigma = 1e-4}), problem, solver, x, {.slice = 1});
  const at::Tensor u = Stream(0, "zeroth-order").at(0).normal({x.size(0)});
  const at::Tensor slope = unrolled_gradient(problem, x, {.lr = 0.1}, 2, 0, 1).dot(u);
  EXPECT_LT(relative_error(h.value, slope * u), 1e-5);
}

TEST(ZerothOrder, ServesAnyInnerSolver) {
  const QuadraticProblem problem;
  const at::Tensor x = problem.initial_outer();
  const Lbfgs solver({});
  EXPECT_TRUE(ZerothOrder().objections(problem, solver).empty());
  expect_in_expectation(estimate(ZerothOrder({.samples = 1500, .sigma = 0.1}), problem, solver, x), problem.hypergradient(x));
}

TEST(ZerothOrder, DrawsAnewAtEachOuterStepAndTheSameAtTheSame) {
  const QuadraticProblem problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver({.lr = 0.5}, 2);
  const auto at_seed = [&](uint64_t seed) {
    const InnerStart start{.y = problem.initial_inner(x, 0)};
    InnerSolution solution = solver.solve(oracle, x, 0, start, {});
    Batch outer;
    outer.seed = seed;
    EstimatorInput input{oracle, solver, x, solution, Batch{}, outer, {}};
    input.start = start;
    return ZerothOrder().estimate(input).value;
  };
  EXPECT_TRUE(at::equal(at_seed(3), at_seed(3)));
  EXPECT_GT(relative_error(at_seed(3), at_seed(4)), 0.01);
}

TEST(ZerothOrder, GradesAFailedSolveBadAndRefusesBadOptions) {
  const QuadraticProblem problem;
  const at::Tensor x = problem.initial_outer();
  EXPECT_EQ(estimate(ZerothOrder(), problem, rule_solver({.lr = 30.0}, 40), x).grade, Grade::kBad);
  EXPECT_THROW(ZerothOrder({.samples = 0}), Error);
  EXPECT_THROW(ZerothOrder({.sigma = 0}), Error);
}

}  // namespace
}  // namespace bilevel
