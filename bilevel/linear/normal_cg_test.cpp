#include "bilevel/linear/normal_cg.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/systems_for_tests.h"

namespace bilevel::normal_cg_test {
namespace {

using namespace test;

Operator both(const at::Tensor& M) {
  Operator A = product_with(M);
  A.apply_transposed = [M](const at::Tensor& v) { return M.t().mv(v); };
  return A;
}

LinearResult normal_cg(const at::Tensor& M, const at::Tensor& b, int64_t iterations, const at::Tensor& q0 = {},
                       double tolerance = 0) {
  return NormalCg({.iterations = iterations, .tolerance = tolerance}).solve(both(M), b, q0);
}

at::Tensor unsymmetric(int64_t d) { return symmetric(spectrum(d, 0.5, 5.0)) + 0.3 * vector(d * d, 4).view({d, d}); }

TEST(NormalCg, LeavesTheSmallestResidualOfTheKrylovSpaceOfTheNormalEquations) {
  const at::Tensor M = unsymmetric(20), b = vector(20), q0 = 0.1 * vector(20, 5);
  const auto expected = [&](int64_t K, const at::Tensor& from) {
    const at::Tensor r0 = b - M.mv(from), V = krylov_basis(M.t().mm(M), M.t().mv(r0), K);
    return from + V.mv(std::get<0>(at::linalg_lstsq(M.mm(V), r0.unsqueeze(1))).squeeze(1));
  };
  for (const int64_t K : {1, 2, 3, 5, 8}) {
    const auto result = normal_cg(M, b, K);
    EXPECT_LT(distance(result.solution, expected(K, at::zeros_like(b))), 1e-10) << K;
    EXPECT_EQ(result.iterations, K);
    EXPECT_LT(distance(normal_cg(M, b, K, q0).solution, expected(K, q0)), 1e-10) << K;
    EXPECT_GT(distance(at::linalg_solve(M, b), expected(K, at::zeros_like(b))), 1e-3);
    // Not with the transpose in the place of A.
    EXPECT_GT(distance(normal_cg(M.t(), b, K).solution, result.solution), 1e-2);
  }
}

TEST(NormalCg, SolvesASymmetricIndefiniteMatrixWithoutATransposedProduct) {
  const at::Tensor M = symmetric({3.0, 1.0, -0.5, -2.0}), b = vector(4);
  const auto result = NormalCg({.iterations = 20, .tolerance = 1e-12}).solve(product_with(M), b, {});
  EXPECT_EQ(result.status, Status::kConverged);
  EXPECT_LT(distance(result.solution, at::linalg_solve(M, b)), 1e-10);
}

TEST(NormalCg, ReportsASingularMatrixWithTheLeastSquaresSolution) {
  at::Tensor M = unsymmetric(6);
  M[2] = 0.5 * M[0] - M[5];
  const at::Tensor b = vector(6), expected = at::linalg_pinv(M, 1e-10).mv(b);
  const auto result = normal_cg(M, b, 100);
  EXPECT_EQ(result.status, Status::kSingular) << result.message;
  EXPECT_LT(distance(result.solution, expected), 1e-6);  // from zero it is the smallest of them
  const auto solved = normal_cg(M, M.mv(vector(6, 9)), 100, {}, 1e-12);
  EXPECT_EQ(solved.status, Status::kConverged) << solved.message;
  EXPECT_EQ(normal_cg(at::zeros({3, 3}, at::kDouble), vector(3), 5).status, Status::kSingular);
}

TEST(NormalCg, ItsResidualNeverRisesAndItsRateIsThatOfTheCondition) {
  const double condition = 30;
  const int64_t d = 400;
  const at::Tensor lambda = at::linspace(1 / condition, 1, d, at::kDouble);
  Operator A;
  A.dim = d;
  A.apply = [&](const at::Tensor& v) { return lambda * v; };
  const auto result = NormalCg({.iterations = 90, .tolerance = 0}).solve(A, at::ones({d}, at::kDouble), {});
  for (size_t i = 1; i < result.history.size(); ++i) EXPECT_LT(result.history[i], result.history[i - 1]) << i;
  const double observed = std::log(result.history[79] / result.history[39]) / 40;
  EXPECT_NEAR(observed, std::log((condition - 1) / (condition + 1)), 0.25 * std::abs(observed));
  // cg itself, whose rate is that of the root, is far ahead
  EXPECT_LT(Cg({.iterations = 90, .tolerance = 0}).solve(A, at::ones({d}, at::kDouble), {}).relative_residual,
            1e-6 * result.relative_residual);
}

TEST(NormalCg, RefusesAnUnsymmetricMatrixWithoutItsTranspose) {
  EXPECT_THROW(NormalCg({}).solve(product_with(unsymmetric(3)), vector(3), {}), Error);
  EXPECT_EQ((NormalCgOptions{.iterations = 0, .tolerance = -1, .damping = -1, .true_residual_every = 0}).violations().size(), 4U);
}

}  // namespace
}  // namespace bilevel::normal_cg_test
