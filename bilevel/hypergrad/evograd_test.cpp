#include "bilevel/hypergrad/evograd.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "bilevel/core/error.h"
#include "bilevel/core/guards.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::evograd_test {
namespace {

using namespace testing;
using ::testing::HasSubstr;

/// At (x, y), with the noise of outer seed `seed`.
Hypergradient at_point(const EvoGrad& evograd, const Problem& problem, const at::Tensor& x, const at::Tensor& y, uint64_t seed,
                       const Oracle* oracle = nullptr) {
  const AutodiffOracle plain(problem);
  const RuleSolver solver = rule_solver({.lr = 0.1}, 0);
  InnerSolution solution;
  solution.y = y;
  Batch outer;
  outer.seed = seed;
  EstimatorInput input{oracle != nullptr ? *oracle : plain, solver, x, solution, {}, outer, {}};
  return evograd.estimate(input);
}

/// The derivative of the step as the paper writes it, by autograd through softmax and merge, the copies in reverse order.
at::Tensor by_autograd(const EvoGradOptions& o, const Problem& problem, const at::Tensor& x, const at::Tensor& y, uint64_t seed) {
  const at::Tensor epsilon = EvoGrad(o).noise(Stream(seed, "evograd").at(0), y.size(0)).flip(0);
  const at::AutoGradMode grad_mode(true);
  const at::Tensor leaf = x.detach().clone().requires_grad_(true);
  std::vector<at::Tensor> losses, copies;
  for (const at::Tensor& one : epsilon.unbind(0)) {
    copies.push_back(y + o.sigma * one);
    losses.push_back(problem.inner_loss(leaf, copies.back(), {}));
  }
  const at::Tensor weights = at::softmax(-at::stack(losses) / o.temperature, 0);
  const at::Tensor loss = problem.outer_loss(leaf, (weights.unsqueeze(1) * at::stack(copies)).sum(0), {});
  return torch::autograd::grad({loss}, {leaf})[0];
}

TEST(EvoGrad, IsTheDerivativeOfItsStepByAutograd) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer(), y = unrolled_end(problem, x, {.lr = 0.1}, 5);
  for (const EvoGradOptions& o :
       std::vector<EvoGradOptions>{{.copies = 2, .sigma = 0.05},
                                   {.copies = 7, .sigma = 0.1, .temperature = 0.2},
                                   {.copies = 4, .sigma = 0.1, .noise = EvoGradOptions::Noise::kGaussian}}) {
    const Hypergradient h = at_point(EvoGrad(o), problem, x, y, 3);
    EXPECT_LT(relative_error(h.value - h.direct, by_autograd(o, problem, x, y, 3) - h.direct), 1e-10);
    EXPECT_GT(relative_error(h.value - h.direct, by_autograd(o, problem, x, y, 4) - h.direct), 0.1);  // other noise
    EXPECT_EQ(h.grade, Grade::kOk) << h.message;
  }
}

// Mean and standard error (2-norms) of the implicit part over many draws.
struct Average {
  at::Tensor mean;
  double standard_error;
};

Average average(const EvoGrad& evograd, const Problem& problem, const at::Tensor& x, const at::Tensor& y, int64_t draws) {
  at::Tensor sum = at::zeros_like(x);
  double squares = 0;
  for (int64_t i = 0; i < draws; ++i) {
    const Hypergradient h = at_point(evograd, problem, x, y, static_cast<uint64_t>(i));
    const at::Tensor implicit = h.value - h.direct;
    sum += implicit;
    squares += implicit.square().sum().item<double>();
  }
  const double n = static_cast<double>(draws);
  const at::Tensor mean = sum / n;
  return {mean, std::sqrt((squares / n - mean.square().sum().item<double>()) / (n - 1))};
}

TEST(EvoGrad, DrawsSignsOrNormalNumbersThatTheStateOfLibTorchDoesNotChange) {
  const Draw draw = Stream(7, "evograd").at(0);
  const at::Tensor signs = EvoGrad().noise(draw, 10000),
                   normal = EvoGrad({.noise = EvoGradOptions::Noise::kGaussian}).noise(draw, 10000);
  EXPECT_TRUE(at::equal(signs.abs(), at::ones({2, 10000}, at::kDouble)));
  EXPECT_LT(signs.mean(1).abs().max().item<double>(), 0.04);  // four standard errors
  EXPECT_LT((signs[0] * signs[1]).mean().abs().item<double>(), 0.04);
  EXPECT_NEAR(normal.square().mean().item<double>(), 1.0, 0.04);
  at::randn({3});
  EXPECT_TRUE(at::equal(EvoGrad().noise(draw, 10000), signs));
}

TEST(EvoGrad, IsInExpectationAStepOfItsStepSize) {
  const QuadraticProblem problem;
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0) + 0.3;
  const at::Tensor product = cross(problem, x, y).t().mv(outer_grad_y(problem, x, y));
  for (const auto& [copies, temperature] : {std::pair<int64_t, double>{2, 0.05}, {5, 0.2}}) {
    const EvoGrad evograd({.copies = copies, .sigma = 1e-3, .temperature = temperature});
    const double share = 1 - 1.0 / static_cast<double>(copies);
    const at::Tensor expected = -1e-6 * share / temperature * product;
    EXPECT_NEAR(evograd.step_size(), 1e-6 * share / temperature, 1e-18);
    const Average seen = average(evograd, problem, x, y, 2500);
    EXPECT_LT((seen.mean - expected).norm().item<double>(), 3 * seen.standard_error);
    EXPECT_GT(expected.norm().item<double>(), 6 * seen.standard_error) << "too few draws to tell it from nothing";
    if (copies == 2) {  // 1 − 1/K is far enough from 1
      EXPECT_GT((seen.mean - expected / share).norm().item<double>(), 6 * seen.standard_error);
    }
  }
}

TEST(EvoGrad, GrowsQuieterWithMoreCopies) {
  const QuadraticProblem problem;
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0) + 0.3;
  const auto noise = [&](int64_t copies) {
    const EvoGrad evograd({.copies = copies});
    const Average seen = average(evograd, problem, x, y, 400);
    return seen.standard_error / evograd.step_size();
  };
  EXPECT_GT(noise(2), 2 * noise(20));  // in the units of the expectation
}

/// g + constant.
class Raised final : public TestProblem {
 public:
  Raised(const Problem& base, double by) : base_(base), by_(by) {
    outer_layout_ = base.outer_layout();
    inner_layout_ = base.inner_layout();
    x0_ = base.initial_outer();
    y0_ = base.initial_inner(x0_, 0);
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return base_.inner_loss(x, y, batch) + by_;
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return base_.outer_loss(x, y, batch);
  }

 private:
  const Problem& base_;
  double by_;
};

TEST(EvoGrad, DoesNotSeeAConstantInTheInnerLoss) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0);
  const EvoGrad evograd({.sigma = 0.05});
  const Hypergradient h = at_point(evograd, problem, x, y, 1), raised = at_point(evograd, Raised(problem, 100.0), x, y, 1);
  EXPECT_LT(relative_error(raised.value - raised.direct, h.value - h.direct), 1e-9);
}

TEST(EvoGrad, WarnsWhereOneCopyTakesAllTheWeight) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0);
  const Hypergradient h = at_point(EvoGrad({.sigma = 1.0, .temperature = 1e-4}), problem, x, y, 1);
  EXPECT_EQ(h.grade, Grade::kWarn);
  EXPECT_THAT(h.message, HasSubstr("lower sigma"));
  EXPECT_LT((h.value - h.direct).norm().item<double>(), 1e-6);
}

/// Half of y is dropped at random in g, with what Batch::seed says.
class Dropout final : public TestProblem {
 public:
  Dropout() {
    outer_layout_.add("x", {40});
    inner_layout_.add("y", {40});
    x0_ = 0.1 * at::arange(40, at::kDouble);
    y0_ = at::ones({40}, at::kDouble);
  }
  bool draws_random_numbers() const override { return true; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return (at::dropout(y, 0.5, true) - x).square().sum();
  }
  at::Tensor outer_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const override { return y.square().sum(); }
};

TEST(EvoGrad, ShowsAllCopiesTheSameDropout) {
  const Dropout problem;
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0);
  // Other masks would differ in g by far more than the temperature.
  const Hypergradient h = at_point(EvoGrad(), problem, x, y, 1);
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
  // ∂x g = −2 (mask ⊙ y_k · 2 − x): between two copies it differs where the mask is 1 alone, but for rounding.
  const at::Tensor implicit = (h.value - h.direct).abs();
  const int64_t moved = implicit.gt(1e-9 * implicit.max()).sum().item<int64_t>();
  EXPECT_GT(moved, 5);
  EXPECT_LT(moved, 35);
}

TEST(EvoGrad, AsksForValuesAndFirstDerivativesAlone) {
  const MlpProblem problem;
  const AutodiffOracle plain(problem);
  const CountedOracle oracle(plain);
  const at::Tensor x = problem.initial_outer();
  at_point(EvoGrad({.copies = 3}), problem, x, problem.initial_inner(x, 0), 1, &oracle);
  EXPECT_EQ(oracle.cost().hvps, 0);
  EXPECT_EQ(oracle.cost().cross_products, 0);
  EXPECT_EQ(oracle.cost().gradients, 4);  // ∂x g of each copy, and f's
  EXPECT_EQ(oracle.cost().forwards, 4);   // g of each copy, and f where the solve ended
}

TEST(EvoGrad, KeepsItsDigitsInSinglePrecision) {
  const MlpProblem problem, single({.dtype = at::kFloat});
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0);
  const Hypergradient h = at_point(EvoGrad({.sigma = 0.02}), problem, x, y, 5);
  const Hypergradient s = at_point(EvoGrad({.sigma = 0.02}), single, x.to(at::kFloat), y.to(at::kFloat), 5);
  EXPECT_EQ(s.value.scalar_type(), at::kFloat);
  EXPECT_LT(relative_error((s.value - s.direct).to(at::kDouble), h.value - h.direct), 5e-3);
}

TEST(EvoGrad, SaysWhatItDifferentiatesAndWithWhatBias) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  const Hypergradient h = at_point(EvoGrad(), problem, x, problem.initial_inner(x, 0), 1);
  EXPECT_EQ(h.certificate.differentiates, "f after one evolutionary step");
  EXPECT_FALSE(h.certificate.bias.empty());
  EXPECT_FALSE(h.certificate.error_bound.has_value());
  EXPECT_THAT(h.message, HasSubstr("size 1e-05"));
  EXPECT_NEAR(h.outer_loss, problem.outer_loss(x, problem.initial_inner(x, 0), {}).item<double>(), 1e-14);
}

TEST(EvoGrad, RefusesASingleCopyAndHyperparametersBesideTheLoss) {
  EXPECT_THROW(EvoGrad({.copies = 1}), Error);
  EXPECT_THROW(EvoGrad({.sigma = 0.0}), Error);
  EXPECT_THROW(EvoGrad({.temperature = -1.0}), Error);
  const MlpProblem base;
  PlainRule rule;
  rule.learned_lr = true;
  EXPECT_EQ(EvoGrad().objections(LearnedRuleProblem(base, 0.1), rule_solver(rule, 5)).size(), 1u);
  EXPECT_TRUE(EvoGrad().objections(base, rule_solver({}, 5)).empty());
}

}  // namespace
}  // namespace bilevel::evograd_test
