#include "bilevel/linear/bicgstab.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/linear/systems_for_tests.h"

namespace bilevel::bicgstab_test {
namespace {

using namespace test;

LinearResult bicgstab(const at::Tensor& M, const at::Tensor& b, int64_t iterations, double tolerance = 0) {
  return Bicgstab({.iterations = iterations, .tolerance = tolerance}).solve(product_with(M), b, {});
}

at::Tensor unsymmetric(int64_t d) { return symmetric(spectrum(d, 0.5, 5.0)) + 0.3 * vector(d * d, 4).view({d, d}); }

// Its definition: r_j = Q_j(A) P_j(A) r_0, with P_j the polynomial of biconjugate gradients, whose residual is orthogonal to
// span{r̂, Aᵀr̂, …}, and Q_j = Π (1 − ω_i A), each ω the minimiser of its factor.
at::Tensor residual_of_sweeps(const at::Tensor& M, const at::Tensor& b, int64_t sweeps) {
  const auto bicg = [&](int64_t j) {  // Petrov–Galerkin: q in K_j(A, b), b − A q ⟂ K_j(Aᵀ, b)
    const at::Tensor V = krylov_basis(M, b, j), W = krylov_basis(M.t(), b, j);
    return b - M.mm(V).mv(at::linalg_solve(W.t().mm(M).mm(V), W.t().mv(b)));
  };
  at::Tensor r = b;
  at::Tensor Q = at::eye(b.size(0), at::kDouble);
  for (int64_t j = 1; j <= sweeps; ++j) {
    const at::Tensor s = Q.mv(bicg(j)), t = M.mv(s);
    const at::Tensor omega = t.dot(s) / t.dot(t);
    r = s - omega * t;
    Q = Q - omega * M.mm(Q);
  }
  return r;
}

TEST(Bicgstab, IsTheProductOfItsTwoPolynomials) {
  const at::Tensor M = unsymmetric(20), b = vector(20);
  for (const int64_t sweeps : {1, 2, 3, 5}) {
    const auto result = bicgstab(M, b, 2 * sweeps);
    ASSERT_EQ(result.iterations, 2 * sweeps);
    ASSERT_EQ(static_cast<int64_t>(result.history.size()), 2 * sweeps);
    EXPECT_NEAR(result.history.back(), length(residual_of_sweeps(M, b, sweeps)) / length(b), 1e-9) << sweeps;
    EXPECT_GT(std::abs(result.history.back() - length(residual_of_sweeps(M, b, sweeps + 1)) / length(b)), 1e-4);
  }
}

TEST(Bicgstab, StopsAtTheToleranceAndReportsTheResidualOfTheSolution) {
  const at::Tensor M = unsymmetric(40), b = vector(40);
  for (const double tolerance : {1e-2, 1e-6, 1e-10}) {
    const auto result = bicgstab(M, b, 400, tolerance);
    EXPECT_EQ(result.status, Status::kConverged) << result.message;
    EXPECT_LE(result.relative_residual, tolerance);
    EXPECT_NEAR(result.relative_residual, length(b - M.mv(result.solution)) / length(b), 1e-14);
  }
  const auto odd = bicgstab(M, b, 7);
  EXPECT_EQ(odd.iterations, 7);
  EXPECT_NEAR(odd.relative_residual, *std::min_element(odd.history.begin(), odd.history.end()), 1e-10) << "the best iterate";
}

TEST(Bicgstab, EndsWhereItsRecursionBreaksDown) {
  // A rotation by a right angle: rᵀA r = 0 for every r.
  const at::Tensor J = at::tensor({0.0, 1.0, -1.0, 0.0}, at::kDouble).view({2, 2}), b = vector(2);
  const auto skew = bicgstab(J, b, 50);
  EXPECT_EQ(skew.status, Status::kSingular) << skew.message;
  EXPECT_EQ(length(skew.solution), 0);
  EXPECT_EQ(skew.relative_residual, 1);
  EXPECT_EQ(bicgstab(at::zeros({3, 3}, at::kDouble), vector(3), 50).status, Status::kSingular);
  at::Tensor M = unsymmetric(6);
  M[2] = 0.5 * M[0] - M[5];
  const auto singular = bicgstab(M, vector(6), 200);
  EXPECT_GT(singular.relative_residual, 1e-3);
  EXPECT_LE(singular.relative_residual, 1);
  EXPECT_NE(singular.status, Status::kConverged);
}

TEST(Bicgstab, WorksInFloatAndStopsAtItsRounding) {
  const at::Tensor M = (symmetric(spectrum(30, 0.5, 5.0)) + 0.03 * vector(900, 4).view({30, 30})).to(at::kFloat),
                   b = vector(30).to(at::kFloat);
  const auto result = bicgstab(M, b, 3000, 1e-10);
  EXPECT_LT(result.iterations, 1000) << result.message;
  EXPECT_LT(distance(result.solution, at::linalg_solve(M.to(at::kDouble), b.to(at::kDouble))), 1e-4);
}

TEST(Bicgstab, NamesEachViolation) {
  EXPECT_EQ((BicgstabOptions{.iterations = 0, .tolerance = -1, .damping = -1, .true_residual_every = 0}).violations().size(), 4U);
  EXPECT_THROW(Bicgstab({.iterations = 0}), Error);
}

}  // namespace
}  // namespace bilevel::bicgstab_test
