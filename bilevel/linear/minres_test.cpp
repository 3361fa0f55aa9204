#include "bilevel/linear/minres.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/gmres.h"
#include "bilevel/linear/systems_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

LinearResult minres(const Operator& A, const at::Tensor& b, int64_t iterations, const at::Tensor& q0 = {}, double tolerance = 0) {
  return Minres({.iterations = iterations, .tolerance = tolerance}).solve(A, b, q0);
}

at::Tensor indefinite(int64_t d) {
  std::vector<double> values = spectrum(d, 0.1, 10.0);
  for (int64_t i = 0; i < d; i += 3) values[static_cast<size_t>(i)] *= -1;
  return symmetric(values);
}

TEST(Minres, LeavesTheSmallestResidualOfTheKrylovSpaceOfKProducts) {
  const at::Tensor b = vector(25);
  for (const at::Tensor& M : {symmetric(spectrum(25, 0.1, 10.0)), indefinite(25)}) {
    const at::Tensor q0 = 0.5 * at::linalg_solve(M, b) + 5e-3 * vector(25, 5);
    for (const int64_t K : {1, 2, 3, 5, 8, 12}) {
      const auto result = minres(product_with(M), b, K);
      const at::Tensor expected = smallest_residual(M, b, K, at::zeros_like(b));
      EXPECT_LT(distance(result.solution, expected), 1e-9) << K;
      EXPECT_EQ(result.iterations, K);
      EXPECT_NEAR(result.history.back(), length(b - M.mv(expected)) / length(b), 1e-10);
      EXPECT_GT(distance(at::linalg_solve(M, b), expected), 1e-3) << "too easy to tell K from the limit";
      EXPECT_GT(distance(smallest_residual(M, b, K + 1, at::zeros_like(b)), expected), 1e-3);
      EXPECT_LT(distance(minres(product_with(M), b, K, q0).solution, smallest_residual(M, b, K, q0)), 1e-9) << K;
    }
  }
  const at::Tensor M = symmetric(spectrum(25, 0.1, 10.0));
  EXPECT_GT(distance(Cg({.iterations = 5}).solve(product_with(M), b, {}).solution, minres(product_with(M), b, 5).solution), 1e-2);
}

TEST(Minres, ItsResidualNeverRises) {
  const at::Tensor M = indefinite(40);
  const auto result = minres(product_with(M), vector(40), 80);
  for (size_t i = 1; i < result.history.size(); ++i) EXPECT_LE(result.history[i], result.history[i - 1] * (1 + 1e-9)) << i;
  EXPECT_LT(result.relative_residual, 1e-12);
}

TEST(Minres, SmallestCurvatureIsTheSmallestRitzValueAndNeverBelowTheSmallestEigenvalue) {
  const at::Tensor M = symmetric(spectrum(25, 0.1, 10.0)), b = vector(25);
  for (const int64_t K : {1, 4, 10}) {
    const at::Tensor V = krylov_basis(M, b, K);
    const double expected = at::linalg_eigvalsh(V.t().mm(M).mm(V))[0].item<double>();
    EXPECT_NEAR(minres(product_with(M), b, K).smallest_curvature.value(), expected, 1e-8) << K;
    EXPECT_GT(expected, 0.1);
  }
  EXPECT_NEAR(minres(product_with(M), b, 25).smallest_curvature.value(), 0.1, 1e-6);
  const auto saddle = minres(product_with(indefinite(25)), b, 30);
  EXPECT_EQ(saddle.negative_curvature.has_value(), false);  // no failure
  EXPECT_LT(saddle.smallest_curvature.value(), -1);
}

TEST(Minres, ReportsASingularMatrixWithTheLeastSquaresSolution) {
  const at::Tensor M = symmetric({0.0, 1.0, 2.0, 3.0, -1.0}), inside = M.mv(vector(5));
  const auto solved = minres(product_with(M), inside, 20, {}, 1e-12);
  EXPECT_EQ(solved.status, Status::kConverged) << solved.message;
  EXPECT_LT(length(M.mv(solved.solution) - inside), 1e-11);

  const at::Tensor b = vector(5, 8);
  const double least = length(b - M.mv(at::linalg_pinv(M, 1e-10).mv(b))) / length(b);
  ASSERT_GT(least, 0.05);
  const auto result = minres(product_with(M), b, 50);
  EXPECT_EQ(result.status, Status::kSingular) << result.message;
  EXPECT_NEAR(result.relative_residual, least, 1e-8);
  const auto zero = minres(product_with(at::zeros({3, 3}, at::kDouble)), vector(3), 5);
  EXPECT_EQ(zero.status, Status::kSingular);
  EXPECT_EQ(length(zero.solution), 0);
}

TEST(Minres, AsksForOneProductAnIterationAndOneForTheResidual) {
  int64_t products = 0;
  minres(counted(symmetric(spectrum(50, 0.1, 10.0)), products), vector(50), 8);
  EXPECT_EQ(products, 9);
}

TEST(Minres, StopsAtTheToleranceAndAtTheRounding) {
  const at::Tensor M = symmetric(spectrum(50, 0.1, 10.0)), b = vector(50);
  for (const double tolerance : {1e-2, 1e-6, 1e-10}) {
    const auto result = minres(product_with(M), b, 500, {}, tolerance);
    EXPECT_EQ(result.status, Status::kConverged);
    EXPECT_LE(result.relative_residual, tolerance);
    EXPECT_GT(result.history[result.history.size() - 2], tolerance) << "it could have stopped earlier";
  }
  const auto single = minres(product_with(M.to(at::kFloat)), b.to(at::kFloat), 3000, {}, 0);
  EXPECT_FALSE(failed(single.status)) << single.message;
  EXPECT_LT(single.iterations, 500);
  EXPECT_LT(single.relative_residual, 1e-5);
}

TEST(Minres, RefusesAnUnsymmetricMatrix) {
  EXPECT_THROW(minres(product_with(symmetric({1, 2, 3}).triu()), vector(3), 5), Error);
  EXPECT_EQ((MinresOptions{.iterations = 0, .tolerance = -1, .damping = -1, .true_residual_every = 0}).violations().size(), 4U);
}

}  // namespace
}  // namespace bilevel
