#include "bilevel/linear/gmres.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/linear/bicgstab.h"
#include "bilevel/linear/systems_for_tests.h"

namespace bilevel::gmres_test {
namespace {

using namespace test;

LinearResult gmres(const at::Tensor& M, const at::Tensor& b, int64_t iterations, int64_t restart = 50, const at::Tensor& q0 = {},
                   double tolerance = 0) {
  return Gmres({.iterations = iterations, .restart = restart, .tolerance = tolerance}).solve(product_with(M), b, q0);
}

at::Tensor unsymmetric(int64_t d) { return symmetric(spectrum(d, 0.5, 5.0)) + 0.3 * vector(d * d, 4).view({d, d}); }

TEST(Gmres, LeavesTheSmallestResidualOfTheKrylovSpaceOfKProducts) {
  const at::Tensor M = unsymmetric(20), b = vector(20), q0 = 0.02 * vector(20, 5);
  for (const int64_t K : {1, 2, 3, 5, 8, 12}) {
    const auto result = gmres(M, b, K);
    const at::Tensor expected = smallest_residual(M, b, K, at::zeros_like(b));
    EXPECT_LT(distance(result.solution, expected), 1e-10) << K;
    EXPECT_EQ(result.iterations, K);
    EXPECT_EQ(static_cast<int64_t>(result.history.size()), K);
    EXPECT_NEAR(result.history[K - 1], length(b - M.mv(expected)) / length(b), 1e-12);
    EXPECT_GT(distance(at::linalg_solve(M, b), expected), 1e-3) << "too easy to tell K from the limit";
    EXPECT_GT(distance(Bicgstab({.iterations = K}).solve(product_with(M), b, {}).solution, expected), K == 1 ? 0 : 1e-3);
    EXPECT_LT(distance(gmres(M, b, K, 50, q0).solution, smallest_residual(M, b, K, q0)), 1e-10) << K;
  }
  EXPECT_LT(distance(gmres(M, b, 20).solution, at::linalg_solve(M, b)), 1e-11);
}

TEST(Gmres, RestartedIsACycleFromWhereTheLastOneEnded) {
  const at::Tensor M = unsymmetric(20), b = vector(20);
  at::Tensor q = at::zeros_like(b);
  for (int cycle = 0; cycle < 3; ++cycle) q = smallest_residual(M, b, 4, q);
  EXPECT_LT(distance(gmres(M, b, 12, 4).solution, q), 1e-10);
  EXPECT_GT(distance(gmres(M, b, 12, 12).solution, q), 1e-3);
  // In the right half plane it gets there.
  const at::Tensor N = symmetric(spectrum(20, 0.5, 5.0)) + 0.03 * vector(400, 4).view({20, 20});
  EXPECT_LT(distance(gmres(N, b, 600, 4, {}, 1e-12).solution, at::linalg_solve(N, b)), 1e-10);
}

TEST(Gmres, KeepsItsBasisOrthogonalOnAnIllConditionedMatrix) {
  const int64_t d = 40;
  const at::Tensor Q = std::get<0>(at::linalg_qr(vector(d * d, 9).view({d, d})));
  // κ = 1e10, not normal.
  const at::Tensor M = symmetric(spectrum(d, 1e-10, 1.0)).mm(Q), exact = M.t().mv(vector(d)), b = M.mv(exact);
  const auto result = gmres(M, b, d, d);
  EXPECT_LT(result.relative_residual, 1e-12) << result.message;
}

TEST(Gmres, ReportsASingularMatrix) {
  at::Tensor M = unsymmetric(6);
  M[2] = 0.5 * M[0] - M[5];
  const auto inconsistent = gmres(M, vector(6), 50, 50, {}, 1e-12);
  EXPECT_EQ(inconsistent.status, Status::kSingular) << inconsistent.message;
  EXPECT_GT(inconsistent.relative_residual, 1e-3);
  EXPECT_LT(length(inconsistent.solution), 1e6);
  const auto zero = gmres(at::zeros({3, 3}, at::kDouble), vector(3), 5);
  EXPECT_EQ(zero.status, Status::kSingular);
  EXPECT_EQ(length(zero.solution), 0);
  // A nilpotent matrix: b outside the range, and A b in it.
  const at::Tensor N = at::tensor({0.0, 1.0, 0.0, 0.0}, at::kDouble).view({2, 2});
  EXPECT_EQ(gmres(N, at::tensor({0.0, 1.0}, at::kDouble), 10).status, Status::kSingular);
  // b in the range of a symmetric one: solved.
  const at::Tensor S = symmetric({0.0, 1.0, 2.0, 3.0}), b = S.mv(vector(4));
  const auto solved = gmres(S, b, 10, 50, {}, 1e-12);
  EXPECT_EQ(solved.status, Status::kConverged) << solved.message;
  EXPECT_LT(length(S.mv(solved.solution) - b), 1e-11);
}

TEST(Gmres, SaysWhereACycleGainsNothing) {
  // A cyclic shift: nothing is gained before the last product of d.
  const at::Tensor M = at::eye(8, at::kDouble).roll(1, 0), b = at::eye(8, at::kDouble)[0];
  const auto stuck = gmres(M, b, 100, 5);
  EXPECT_EQ(stuck.status, Status::kIterationLimit);
  EXPECT_NE(stuck.message.find("gained nothing"), std::string::npos) << stuck.message;
  EXPECT_LT(stuck.iterations, 20);
  EXPECT_LT(distance(gmres(M, b, 100, 8).solution, at::linalg_solve(M, b)), 1e-14);
}

TEST(Gmres, NamesEachViolation) {
  EXPECT_EQ((GmresOptions{.iterations = 0, .restart = 0, .tolerance = -1, .damping = -1}).violations().size(), 4U);
  EXPECT_THROW(Gmres({.restart = 0}), Error);
}

}  // namespace
}  // namespace bilevel::gmres_test
