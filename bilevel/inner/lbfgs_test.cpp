#include "bilevel/inner/lbfgs.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"

namespace bilevel {
namespace {

// g = Σ_i log(1 + exp(−a_iᵀy)) / n + ½ ρ ‖y‖² with features of very different scales.
class BadlyScaled : public Problem {
 public:
  explicit BadlyScaled(bool preconditioned) : preconditioned_(preconditioned) {
    outer_.add("x", {1});
    inner_.add("y", {6});
    a_ = Stream(1, "a").at(0).normal({200, 6}) * at::logspace(-1, 1.5, 6, 10, at::kDouble);
    curvature_ = 0.25 * a_.t().mm(a_) / 200 + 1e-3 * at::eye(6, at::kDouble);
  }
  const Layout& outer_layout() const override { return outer_; }
  const Layout& inner_layout() const override { return inner_; }
  at::Tensor inner_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const override {
    return at::softplus(-a_.mv(y) + 1).mean() + 0.5e-3 * y.dot(y);
  }
  at::Tensor outer_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const override { return y.sum(); }
  Preconditioner inner_preconditioner(const at::Tensor&) const override {
    if (!preconditioned_) return {};
    return [inverse = at::inverse(curvature_)](const at::Tensor& v) { return inverse.mv(v); };
  }
  at::Tensor a_, curvature_;

 private:
  bool preconditioned_;
  Layout outer_, inner_;
};

TEST(Lbfgs, FindsTheOptimumAndThePreconditionerOnlyTheWay) {
  const at::Tensor x = at::zeros({1}, at::kDouble), y0 = at::zeros({6}, at::kDouble);
  LbfgsOptions options;
  options.tolerance = 1e-11;
  options.max_iterations = 1000;
  at::Tensor found[2];
  int64_t gradients[2] = {0, 0};
  for (const bool preconditioned : {false, true}) {
    const BadlyScaled problem(preconditioned);
    const AutodiffOracle autodiff(problem);
    const CountedOracle oracle(autodiff);
    const InnerSolution solution = Lbfgs(options).solve(oracle, x, 0, {y0}, {});
    EXPECT_EQ(solution.status, Status::kConverged) << solution.message;
    EXPECT_LT(solution.stationarity, 1e-11);
    EXPECT_EQ(solution.stationarity, autodiff.inner(x, solution.y, {}).y.norm().item<double>());
    found[preconditioned] = solution.y;
    gradients[preconditioned] = oracle.cost().gradients;
  }
  EXPECT_LT((found[0] - found[1]).norm().item<double>() / found[0].norm().item<double>(), 1e-7);
  EXPECT_LT(2 * gradients[1], gradients[0]);
}

TEST(Lbfgs, SaysWhenItRanOutOfIterationsAndWhenTheLossIsNotFinite) {
  const BadlyScaled problem(false);
  const AutodiffOracle oracle(problem);
  const at::Tensor x = at::zeros({1}, at::kDouble), y0 = at::zeros({6}, at::kDouble);
  LbfgsOptions options;
  options.tolerance = 1e-11;
  options.max_iterations = 2;
  EXPECT_EQ(Lbfgs(options).solve(oracle, x, 0, {y0}, {}).status, Status::kIterationLimit);
  EXPECT_EQ(Lbfgs(options).solve(oracle, x, 0, {at::full({6}, NAN, at::kDouble)}, {}).status, Status::kNonFinite);
  TrajectoryPolicy keep;
  keep.keep = true;
  EXPECT_THROW(Lbfgs(options).solve(oracle, x, 0, {y0}, keep), Error);
  EXPECT_THROW(Lbfgs(options).step_size(problem, x), Error);
}

// ¼ Σ (y² − 1)² + coupling: with sufficient decrease alone, pairs of negative curvature would be met and dropped.
TEST(Lbfgs, EveryStepSatisfiesTheStrongWolfeConditions) {
  class Wells : public Problem {
   public:
    Wells() {
      outer_.add("x", {1});
      inner_.add("y", {4});
    }
    const Layout& outer_layout() const override { return outer_; }
    const Layout& inner_layout() const override { return inner_; }
    at::Tensor inner_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const override {
      return 0.25 * (y.square() - 1).square().sum() + 0.3 * (y.narrow(0, 1, 3) - y.narrow(0, 0, 3)).square().sum();
    }
    at::Tensor outer_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const override { return y.sum(); }

   private:
    Layout outer_, inner_;
  };
  const Wells problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = at::zeros({1}, at::kDouble);
  const at::Tensor y0 = at::tensor({0.01, -0.02, 0.015, 0.005}, at::kDouble);
  LbfgsOptions options;
  options.tolerance = 1e-10;
  const InnerSolution end = Lbfgs(options).solve(oracle, x, 0, {y0}, {});
  EXPECT_EQ(end.status, Status::kConverged) << end.message;
  ASSERT_GT(end.steps, 4);
  for (int64_t k = 1; k + 1 < end.steps; ++k) {
    options.max_iterations = k;
    const InnerSolution s = Lbfgs(options).solve(oracle, x, 0, {y0}, {});
    const Gradients before = oracle.inner(x, s.previous, {}), after = oracle.inner(x, s.y, {});
    const at::Tensor step = s.y - s.previous;
    const double slope = at::dot(before.y, step).item<double>(), new_slope = at::dot(after.y, step).item<double>();
    EXPECT_LT(slope, 0);
    EXPECT_LE(after.value.item<double>(), before.value.item<double>() + 1e-4 * slope + 1e-15);
    EXPECT_LE(std::abs(new_slope), 0.9 * std::abs(slope));
  }
}

}  // namespace
}  // namespace bilevel
