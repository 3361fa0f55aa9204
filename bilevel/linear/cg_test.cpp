#include "bilevel/linear/cg.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/linear/neumann.h"
#include "bilevel/linear/systems_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

LinearResult cg(const Operator& A, const at::Tensor& b, int64_t iterations, const at::Tensor& q0 = {}, double tolerance = 0) {
  return Cg({.iterations = iterations, .tolerance = tolerance}).solve(A, b, q0);
}

/// What CG with K products is: the minimiser of ½ qᵀA q − bᵀq over q0 + span{r0, A r0, …, A^{K−1} r0}.
at::Tensor krylov_minimiser(const at::Tensor& M, const at::Tensor& b, int64_t K, const at::Tensor& q0) {
  const at::Tensor r0 = b - M.mv(q0);
  std::vector<at::Tensor> basis;
  at::Tensor v = r0 / length(r0);
  for (int64_t k = 0; k < K; ++k) {
    for (int repeat = 0; repeat < 2; ++repeat) {
      for (const auto& u : basis) v = v - u * u.dot(v);
    }
    basis.push_back(v / length(v));
    v = M.mv(basis.back());
  }
  const at::Tensor V = at::stack(basis, 1);
  return q0 + V.mv(at::linalg_solve(V.t().mm(M).mm(V), V.t().mv(r0)));
}

TEST(Cg, MinimisesTheQuadraticOverTheKrylovSpaceOfKProducts) {
  const at::Tensor M = symmetric(spectrum(25, 0.1, 10.0));
  const at::Tensor b = vector(25);
  const at::Tensor exact = at::linalg_solve(M, b);
  for (const int64_t K : {1, 2, 3, 5, 8, 12}) {
    const auto result = cg(product_with(M), b, K);
    const at::Tensor expected = krylov_minimiser(M, b, K, at::zeros_like(b));
    EXPECT_LT(distance(result.solution, expected), 1e-9) << K;
    EXPECT_EQ(result.iterations, K);
    EXPECT_EQ(result.status, Status::kIterationLimit);
    EXPECT_GT(distance(exact, expected), 1e-3) << "the system is too easy to tell K from the limit";
    const auto neighbour = Neumann({.iterations = K, .scale = 0.15}).solve(product_with(M), b, {});
    EXPECT_GT(distance(neighbour.solution, expected), 1e-2) << K;
  }
}

TEST(Cg, GoesOnFromAWarmStartInTheKrylovSpaceOfItsResidual) {
  const at::Tensor M = symmetric(spectrum(25, 0.1, 10.0));
  const at::Tensor b = vector(25);
  const at::Tensor q0 = at::linalg_solve(M, b) + 0.3 * vector(25, 5);
  for (const int64_t K : {1, 4}) {
    EXPECT_LT(distance(cg(product_with(M), b, K, q0).solution, krylov_minimiser(M, b, K, q0)), 1e-10);
  }
}

TEST(Cg, IsExactAfterDStepsOnARandomSpdSystemOfOrderD) {
  constexpr int64_t kD = 12;
  const at::Tensor M = symmetric(spectrum(kD, 0.5, 5.0));
  const at::Tensor b = vector(kD), exact = at::linalg_solve(M, b);
  const auto result = cg(product_with(M), b, kD);
  EXPECT_LT(distance(result.solution, exact), 1e-10);
  EXPECT_LT(result.relative_residual, 1e-10);
  EXPECT_GT(distance(cg(product_with(M), b, kD - 2).solution, exact), 1e-4);
}

TEST(Cg, LowersTheErrorWithEachIterationAlsoWhereTheResidualRises) {
  const at::Tensor M = symmetric(spectrum(40, 1e-4, 1.0));
  const at::Tensor b = symmetric(spectrum(40, 1e-4, 1.0)).mv(vector(40)), exact = at::linalg_solve(M, b);
  double before = 1;
  bool rose = false;
  for (int64_t K = 1; K <= 30; ++K) {
    const auto result = cg(product_with(M), b, K);
    const double error = distance(result.solution, exact);
    EXPECT_LT(error, before) << K;
    before = error;
    if (K > 1) rose = rose || result.history[K - 1] > result.history[K - 2];
  }
  EXPECT_TRUE(rose) << "the residual never rose, so nothing was tested";
  EXPECT_LT(before, 0.5);
}

TEST(Cg, StopsAtTheToleranceAndReportsTheResidualOfTheSolution) {
  const at::Tensor M = symmetric(spectrum(50, 0.1, 10.0));
  const at::Tensor b = vector(50);
  for (const double tolerance : {1e-2, 1e-6, 1e-10}) {
    const auto result = cg(product_with(M), b, 200, {}, tolerance);
    EXPECT_EQ(result.status, Status::kConverged);
    EXPECT_LE(result.relative_residual, tolerance);
    EXPECT_NEAR(result.relative_residual, length(b - M.mv(result.solution)) / length(b), 1e-14);
    EXPECT_EQ(static_cast<int64_t>(result.history.size()), result.iterations);
    EXPECT_GT(result.history[result.iterations - 2], tolerance) << "it could have stopped earlier";
  }
}

TEST(Cg, AsksForOneProductAnIterationAndOneForTheResidual) {
  const at::Tensor M = symmetric(spectrum(50, 0.1, 10.0));
  int64_t products = 0;
  cg(counted(M, products), vector(50), 8);
  EXPECT_EQ(products, 9);
  products = 0;
  Cg({.iterations = 8, .tolerance = 0, .true_residual_every = 3}).solve(counted(M, products), vector(50), {});
  EXPECT_EQ(products, 8 + 2 + 1);
}

TEST(Cg, DoesNotDependOnTheScaleOfB) {
  const at::Tensor M = symmetric(spectrum(20, 0.1, 10.0));
  const at::Tensor b = vector(20), q = cg(product_with(M), b, 6).solution;
  for (const double scale : {1e12, 1e-12, 1e200, 1e-200}) {
    EXPECT_LT(distance(cg(product_with(M), b * scale, 6).solution / scale, q), 1e-13) << scale;
  }
  const at::Tensor Mf = M.to(at::kFloat), bf = b.to(at::kFloat);
  for (const double scale : {1e12, 1e-12, 1e30, 1e-30}) {
    EXPECT_LT(distance(cg(product_with(Mf), bf * scale, 6).solution / scale, q), 1e-5) << scale;
  }
}

TEST(Cg, WorksInFloatAndStopsAtItsRounding) {
  const at::Tensor M = symmetric(spectrum(30, 0.1, 10.0)).to(at::kFloat);
  const at::Tensor b = vector(30).to(at::kFloat);
  const auto result = cg(product_with(M), b, 500, {}, 1e-10);
  EXPECT_EQ(result.solution.scalar_type(), at::kFloat);
  EXPECT_FALSE(failed(result.status)) << result.message;
  EXPECT_LT(result.iterations, 100);
  EXPECT_LT(distance(result.solution, at::linalg_solve(M.to(at::kDouble), b.to(at::kDouble))), 1e-5);
  EXPECT_NEAR(result.relative_residual, length(b - M.mv(result.solution)) / length(b), 1e-6);
}

TEST(Cg, DoesNotMistakeTheRoundingOfATolerancelessSolveForNegativeCurvature) {
  const at::Tensor M = symmetric(spectrum(10, 0.1, 10.0));
  const auto result = cg(product_with(M), vector(10), 5000);
  EXPECT_FALSE(failed(result.status)) << result.message;
  EXPECT_LT(result.iterations, 100);
  EXPECT_LT(result.relative_residual, 1e-13);
}

TEST(Cg, TakesAWarmStartAndDropsOneThatIsWorseThanZero) {
  const at::Tensor M = symmetric(spectrum(20, 0.1, 10.0));
  const at::Tensor b = vector(20), exact = at::linalg_solve(M, b);
  const auto done = cg(product_with(M), b, 5, exact, 1e-12);
  EXPECT_EQ(done.iterations, 0);
  EXPECT_EQ(done.status, Status::kConverged);
  EXPECT_LT(distance(done.solution, exact), 1e-14);
  const at::Tensor cold = cg(product_with(M), b, 5).solution;
  for (const at::Tensor& bad : {at::Tensor(-10 * exact), at::Tensor(1e6 * vector(20, 9)), at::full_like(b, std::nan(""))}) {
    EXPECT_TRUE(at::equal(cg(product_with(M), b, 5, bad).solution, cold));
  }
}

TEST(Cg, GivesZeroForAZeroRightHandSide) {
  const auto result = cg(product_with(symmetric({1, 2, 3})), at::zeros({3}, at::kDouble), 5, at::ones({3}, at::kDouble));
  EXPECT_TRUE(at::equal(result.solution, at::zeros({3}, at::kDouble)));
  EXPECT_EQ(result.status, Status::kConverged);
  EXPECT_EQ(result.relative_residual, 0);
}

TEST(Cg, ReportsIndefiniteCurvatureInsteadOfReturningAWrongSolution) {
  // b lies almost in the positive eigenspace, so that the first directions have positive curvature.
  const at::Tensor M = at::diag(at::tensor({5.0, 3.0, 2.0, 1.0, -0.5}, at::kDouble));
  const at::Tensor b = at::tensor({1.0, 1.0, 1.0, 1.0, 1e-2}, at::kDouble);
  const auto result = cg(product_with(M), b, 20);
  EXPECT_EQ(result.status, Status::kIndefinite);
  ASSERT_GT(result.iterations, 0);
  ASSERT_LT(result.iterations, 5);
  EXPECT_LT(distance(result.solution, krylov_minimiser(M, b, result.iterations, at::zeros_like(b))), 1e-9);
  EXPECT_NEAR(result.relative_residual, length(b - M.mv(result.solution)) / length(b), 1e-12);

  const auto negative = cg(product_with(-M.abs()), b, 20);
  EXPECT_EQ(negative.status, Status::kIndefinite);
  EXPECT_EQ(length(negative.solution), 0);
  EXPECT_EQ(negative.relative_residual, 1);
  // A large q0 along the negative curvature lowers the energy without end and must not be taken.
  const auto lured = cg(product_with(M), b, 1, at::tensor({0.0, 0.0, 0.0, 0.0, 1e3}, at::kDouble));
  EXPECT_LT(length(lured.solution), 10);
}

TEST(Cg, DampingMakesAnIndefiniteMatrixDefinite) {
  const at::Tensor M = symmetric({5.0, 3.0, 2.0, 1.0, -0.5});
  const at::Tensor b = vector(5);
  const auto result = Cg({.iterations = 20, .damping = 1.0}).solve(product_with(M), b, {});
  EXPECT_EQ(result.status, Status::kConverged);
  EXPECT_LT(distance(result.solution, at::linalg_solve(M + at::eye(5, at::kDouble), b)), 1e-9);
}

TEST(Cg, ReportsAProductThatIsNotFiniteAndReturnsTheBestIterate) {
  const at::Tensor M = symmetric(spectrum(20, 0.1, 10.0));
  const at::Tensor b = vector(20);
  const auto first = cg(breaking(M, 1), b, 10);
  EXPECT_EQ(first.status, Status::kNonFinite);
  EXPECT_EQ(length(first.solution), 0);
  EXPECT_EQ(first.relative_residual, 1);
  const auto later = Cg({.iterations = 10, .tolerance = 0, .true_residual_every = 3}).solve(breaking(M, 6), b, {});
  EXPECT_EQ(later.status, Status::kNonFinite);
  EXPECT_LT(distance(later.solution, krylov_minimiser(M, b, 3, at::zeros_like(b))), 1e-9) << "the last iterate known to be good";
  const auto rhs = cg(product_with(M), at::full_like(b, std::nan("")), 10);
  EXPECT_EQ(rhs.status, Status::kNonFinite);
  EXPECT_TRUE(std::isinf(rhs.relative_residual));
}

TEST(Cg, RefusesWhatItCannotSolve) {
  const at::Tensor M = symmetric({1, 2, 3});
  Operator no_product;
  no_product.dim = 3;
  EXPECT_THROW(cg(product_with(M), vector(4), 5), Error);
  EXPECT_THROW(cg(product_with(M), vector(3), 5, vector(4)), Error);
  EXPECT_THROW(cg(no_product, vector(3), 5), Error);
  EXPECT_THROW(cg(product_with(M.triu()), vector(3), 5), Error);
  EXPECT_THROW(Cg({.iterations = 0}), Error);
  EXPECT_EQ((CgOptions{.iterations = 0, .tolerance = -1, .damping = -1, .true_residual_every = 0}).violations().size(), 4U);
}

}  // namespace
}  // namespace bilevel
