#include "bilevel/inner/step_size.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel {
namespace {

/// ½ yᵀ diag(λ) y.
class Diagonal final : public TestProblem {
 public:
  explicit Diagonal(at::Tensor eigenvalues) : eigenvalues_(std::move(eigenvalues)) {
    outer_layout_.add("x", {1});
    inner_layout_.add("y", {eigenvalues_.size(0)});
    x0_ = at::zeros({1}, eigenvalues_.options());
    y0_ = at::zeros_like(eigenvalues_);
  }
  at::Tensor inner_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const override {
    return 0.5 * (eigenvalues_ * y * y).sum();
  }
  at::Tensor outer_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const override { return y.sum(); }

 private:
  at::Tensor eigenvalues_;
};

double curvature(const Problem& problem, const CurvatureOptions& options = {}) {
  const at::Tensor x = problem.initial_outer();
  return largest_curvature(*AutodiffOracle(problem).linearize_inner(x, problem.initial_inner(x, 0), {}), options);
}

TEST(LargestCurvature, BoundsTheLargestEigenvalueTightly) {
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    for (uint64_t seed = 0; seed < 5; ++seed) {
      // A dense spectrum on (0, 3], where power iteration falls short by tens of per cent after 20 products.
      const Diagonal problem(at::linspace(0.001, 3.0, 2000, at::TensorOptions().dtype(dtype)));
      const double L = curvature(problem, {.seed = seed});
      EXPECT_GE(L, 3.0 * (1 - 1e-3));
      EXPECT_LT(L, 3.0 * 1.1);
    }
  }
}

TEST(LargestCurvature, FindsAnOutlierAmongManySmallEigenvalues) {
  at::Tensor eigenvalues = at::full({5000}, 0.1, at::kDouble);
  eigenvalues[1234] = 40.0;
  EXPECT_NEAR(curvature(Diagonal(eigenvalues)), 40.0, 0.4);
}

TEST(LargestCurvature, TakesTheMagnitudeOfNegativeCurvature) {
  EXPECT_NEAR(curvature(Diagonal(at::tensor({-5.0, 1.0, 2.0, 0.5}, at::kDouble))), 5.0, 1e-9);
}

TEST(LargestCurvature, IsExactInFewDimensionsAndZeroForAFlatLoss) {
  EXPECT_NEAR(curvature(Diagonal(at::tensor({0.3, 1.7, 2.0}, at::kDouble))), 2.0, 1e-12);
  EXPECT_EQ(curvature(Diagonal(at::zeros({4}, at::kDouble))), 0.0);
}

TEST(LargestCurvature, IsNaNWhereAProductIs) {
  EXPECT_TRUE(std::isnan(curvature(Diagonal(at::tensor({1.0, std::nan("")}, at::kDouble)))));
}

}  // namespace
}  // namespace bilevel
