#include "bilevel/linear/neumann.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/systems_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

LinearResult neumann(const Operator& A, const at::Tensor& b, int64_t K, double scale, const at::Tensor& q0 = {}) {
  return Neumann({.iterations = K, .scale = scale}).solve(A, b, q0);
}

/// s Σ_{i=0…K} (I − sM)^i b by powers of the matrix.
at::Tensor series(const at::Tensor& M, const at::Tensor& b, int64_t K, double s) {
  const at::Tensor I = at::eye(M.size(0), at::kDouble);
  at::Tensor sum = at::zeros_like(M);
  for (int64_t i = 0; i <= K; ++i) sum = sum + at::linalg_matrix_power(I - s * M, i);
  return s * sum.mv(b);
}

TEST(Neumann, IsItsPolynomialOfKProductsAndOneTermMore) {
  const at::Tensor M = symmetric(spectrum(20, 0.1, 10.0));
  const at::Tensor b = vector(20);
  for (const int64_t K : {0, 1, 2, 5, 20}) {
    const auto result = neumann(product_with(M), b, K, 0.15);
    const at::Tensor expected = series(M, b, K, 0.15);
    EXPECT_LT(distance(result.solution, expected), 1e-13) << K;
    EXPECT_EQ(result.iterations, K);
    EXPECT_EQ(result.status, Status::kIterationLimit);
    EXPECT_NEAR(result.relative_residual, length(b - M.mv(expected)) / length(b), 1e-13);
    // Not the neighbours: a term less or more, another scale, CG with as many products.
    EXPECT_GT(distance(neumann(product_with(M), b, K + 1, 0.15).solution, expected), 1e-2) << K;
    EXPECT_GT(distance(neumann(product_with(M), b, K, 0.14).solution, expected), 1e-2) << K;
    if (K > 0) {
      EXPECT_GT(distance(Cg({.iterations = K}).solve(product_with(M), b, {}).solution, expected), 1e-2) << K;
    }
  }
}

TEST(Neumann, NeedsNoSymmetry) {
  const at::Tensor M = symmetric(spectrum(10, 0.5, 5.0)) + 0.3 * vector(100, 4).view({10, 10});
  EXPECT_LT(distance(neumann(product_with(M), vector(10), 7, 0.1).solution, series(M, vector(10), 7, 0.1)), 1e-13);
}

TEST(Neumann, ItsErrorShrinksByTheLargestOneMinusScaleTimesEigenvalue) {
  for (const double s : {0.05, 0.19}) {  // governed by the smallest eigenvalue, then by the largest
    const at::Tensor M = symmetric(spectrum(8, 0.4, 10.0));
    const at::Tensor b = vector(8), exact = at::linalg_solve(M, b);
    const double expected = std::max(std::abs(1 - s * 0.4), std::abs(1 - s * 10.0));
    const double e1 = distance(neumann(product_with(M), b, 150, s).solution, exact);
    const double e2 = distance(neumann(product_with(M), b, 200, s).solution, exact);
    EXPECT_NEAR(std::pow(e2 / e1, 1.0 / 50), expected, 2e-3 * expected) << s;
    EXPECT_LT(distance(neumann(product_with(M), b, 2000, s).solution, exact), 1e-12);
  }
}

// At 1e6 no one waits for the end: the error after K products is (1 − sλ)^{K+1} of what it was, which goes to zero.
TEST(Neumann, ItsErrorShrinksAsTheoryHasItOnEachCondition) {
  for (const double condition : {10.0, 1e3, 1e6}) {
    const at::Tensor lambda = at::tensor(spectrum(12, 1 / condition, 1.0), at::kDouble), exact = vector(12, 3);
    Operator A;
    A.dim = 12;
    A.apply = [&](const at::Tensor& v) { return lambda * v; };
    for (const int64_t K : {50, 3000}) {
      const at::Tensor expected = (1 - lambda).pow(K + 1) * exact;
      if (length(expected) < 1e-9) continue;
      EXPECT_LT(distance(exact - neumann(A, lambda * exact, K, 1.0).solution, expected), 1e-6) << condition << ", " << K;
      EXPECT_GT(distance((1 - lambda).pow(K) * exact, expected), 1e-6) << "a term less would pass";
    }
    if (condition > 1e3) continue;
    const auto result = neumann(A, lambda * exact, 40000, 1.0);
    EXPECT_EQ(result.status, Status::kIterationLimit) << "rounding is no divergence: " << result.message;
    EXPECT_LT(distance(result.solution, exact), 1e-11) << condition;
  }
}

TEST(Neumann, StopsAtATolerance) {
  const at::Tensor M = symmetric(spectrum(8, 0.4, 10.0));
  const at::Tensor b = vector(8);
  const auto result = Neumann({.iterations = 10000, .tolerance = 1e-8, .scale = 0.1}).solve(product_with(M), b, {});
  EXPECT_EQ(result.status, Status::kConverged);
  EXPECT_LT(result.iterations, 1000);
  EXPECT_LE(result.relative_residual, 1e-8);
  EXPECT_GT(result.relative_residual, 0.9e-8) << "it could have stopped earlier";
  EXPECT_NEAR(result.relative_residual, length(b - M.mv(result.solution)) / length(b), 1e-15);
}

TEST(Neumann, TakesTheScaleOfTheOperatorWhereItHasNone) {
  const at::Tensor M = symmetric(spectrum(6, 0.5, 4.0));
  const at::Tensor b = vector(6);
  Operator A = product_with(M);
  EXPECT_THROW(neumann(A, b, 3, 0.0), Error);
  A.step_size = at::scalar_tensor(0.3, at::kDouble);
  EXPECT_LT(distance(neumann(A, b, 3, 0.0).solution, series(M, b, 3, 0.3)), 1e-14);
  EXPECT_LT(distance(neumann(A, b, 3, 0.2).solution, series(M, b, 3, 0.2)), 1e-14);  // its own scale goes first

  // A step for each coordinate: s Σ (I − s M)^i b with s a diagonal matrix.
  A.step_size = at::linspace(0.1, 0.4, 6, at::kDouble);
  const at::Tensor S = A.step_size.diag();
  at::Tensor term = S.mv(b), sum = term;
  for (int i = 0; i < 3; ++i) {
    term = term - S.mv(M.mv(term));
    sum = sum + term;
  }
  EXPECT_LT(distance(neumann(A, b, 3, 0.0).solution, sum), 1e-14);
  EXPECT_LT(distance(neumann(A, b, 3000, 0.0).solution, at::linalg_solve(M, b)), 1e-12);
  A.step_size = at::zeros({6}, at::kDouble);
  EXPECT_THROW(neumann(A, b, 3, 0.0), Error);
}

TEST(Neumann, ReportsASeriesThatDivergesAndReturnsTheIterateOfTheSmallestResidual) {
  // s = 2.2 / L: the part along the largest eigenvalue grows, the others shrink at first.
  const at::Tensor M = at::diag(at::tensor({10.0, 3.0, 1.0}, at::kDouble));
  const at::Tensor b = at::tensor({1e-3, 1.0, 1.0}, at::kDouble);
  const auto result = neumann(product_with(M), b, 100, 0.22);
  EXPECT_EQ(result.status, Status::kDiverged);
  double lowest = 1;
  for (int64_t K = 0; K < 20; ++K) lowest = std::min(lowest, length(b - M.mv(series(M, b, K, 0.22))) / length(b));
  EXPECT_NEAR(result.relative_residual, lowest, 1e-3 * lowest);
  EXPECT_LT(lowest, 0.2);
  EXPECT_NEAR(result.relative_residual, length(b - M.mv(result.solution)) / length(b), 1e-12);
  EXPECT_EQ(neumann(product_with(M), b, 100, 0.18).status, Status::kIterationLimit);
  EXPECT_EQ(neumann(product_with(-M), b, 100, 0.1).status, Status::kDiverged);
}

TEST(Neumann, KeepsASingularSystemWhoseResidualStaysAsItIs) {
  const at::Tensor M = symmetric({0.0, 1.0, 2.0}).to(at::kFloat);
  EXPECT_EQ(neumann(product_with(M), vector(3).to(at::kFloat), 3000, 0.4).status, Status::kIterationLimit);
}

TEST(Neumann, DampingShiftsTheMatrix) {
  const at::Tensor M = symmetric({4.0, 1.0, -0.5});
  const at::Tensor b = vector(3), shifted = M + at::eye(3, at::kDouble);
  const auto result = Neumann({.iterations = 300, .damping = 1.0, .scale = 0.3}).solve(product_with(M), b, {});
  EXPECT_LT(distance(result.solution, at::linalg_solve(shifted, b)), 1e-12);
}

TEST(Neumann, DoesNotDependOnTheScaleOfB) {
  const at::Tensor M = symmetric(spectrum(20, 0.1, 10.0));
  const at::Tensor b = vector(20), q = series(M, b, 6, 0.15);
  for (const double scale : {1e12, 1e-12, 1e200}) {
    EXPECT_LT(distance(neumann(product_with(M), b * scale, 6, 0.15).solution / scale, q), 1e-13) << scale;
  }
  const at::Tensor bf = b.to(at::kFloat);
  for (const double scale : {1.0, 1e12, 1e-30}) {
    const auto result = neumann(product_with(M.to(at::kFloat)), bf * scale, 6, 0.15);
    EXPECT_EQ(result.solution.scalar_type(), at::kFloat);
    EXPECT_LT(distance(result.solution / scale, q), 1e-5) << scale;
  }
}

TEST(Neumann, GoesOnFromAWarmStartAndDropsOneThatIsWorseThanZero) {
  const at::Tensor M = symmetric(spectrum(20, 0.1, 10.0));
  const at::Tensor b = vector(20);
  const auto half = neumann(product_with(M), b, 9, 0.15);
  const auto whole = neumann(product_with(M), b, 9, 0.15, half.solution);
  EXPECT_LT(distance(whole.solution, series(M, b, 19, 0.15)), 1e-12);
  EXPECT_TRUE(at::equal(neumann(product_with(M), b, 9, 0.15, -10 * half.solution).solution, half.solution));
  EXPECT_TRUE(at::equal(neumann(product_with(M), b, 9, 0.15, at::full_like(b, std::nan(""))).solution, half.solution));
}

TEST(Neumann, ReportsWhatIsNotFinite) {
  const at::Tensor M = symmetric({1, 2, 3});
  const at::Tensor b = vector(3);
  const auto result = neumann(breaking(M, 4), b, 10, 0.3);
  EXPECT_EQ(result.status, Status::kNonFinite);
  EXPECT_LT(distance(result.solution, series(M, b, 2, 0.3)), 1e-13) << "the last iterate whose residual is known";
  EXPECT_EQ(neumann(product_with(M), at::full_like(b, INFINITY), 10, 0.3).status, Status::kNonFinite);
  EXPECT_EQ(length(neumann(product_with(M), at::zeros_like(b), 10, 0.3).solution), 0);
}

TEST(Neumann, NamesEachViolation) {
  EXPECT_EQ((NeumannOptions{.iterations = -1, .tolerance = -1, .damping = -1, .scale = -1}).violations().size(), 4U);
  EXPECT_THROW(Neumann({.scale = -0.1}), Error);
}

}  // namespace
}  // namespace bilevel
