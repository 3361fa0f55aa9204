#include "bilevel/linear/nystrom.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/linear/nystrom_approximation.h"
#include "bilevel/linear/systems_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

at::Tensor eye(int64_t d) { return at::eye(d, at::kDouble); }

TEST(Nystrom, IsTheWoodburyFormulaOfItsColumns) {
  const int64_t d = 15, k = 6;
  const at::Tensor M = symmetric(spectrum(d, 0.01, 3.0)), b = vector(d);
  const uint64_t seed = 4;
  const auto result = Nystrom({.rank = k, .ridge = 0.1, .sampling = "coordinates", .seed = seed}).solve(product_with(M), b, {});
  // Which columns they were is seen from the products.
  std::vector<at::Tensor> asked;
  Operator A = product_with(M);
  A.apply = [&](const at::Tensor& v) {
    asked.push_back(v.clone());
    return M.mv(v);
  };
  nystrom_approximation(A, k, true, seed, b.options());
  const at::Tensor S = at::stack(asked);
  ASSERT_EQ(S.size(0), k);
  EXPECT_TRUE(at::equal(S.sum(1), at::ones({k}, at::kDouble)));  // coordinate directions, and no two the same
  EXPECT_LE(S.sum(0).max().item<double>(), 1);
  const at::Tensor C = M.mm(S.t()), W = S.mm(C);
  const at::Tensor woodbury = b / 0.1 - C.mv(at::linalg_solve(W + C.t().mm(C) / 0.1, C.t().mv(b))) / 0.01;
  EXPECT_LT(distance(result.solution, woodbury), 1e-9);
  const at::Tensor dense = at::linalg_solve(C.mm(at::linalg_pinv(W)).mm(C.t()) + 0.1 * eye(d), b);
  EXPECT_LT(distance(result.solution, dense), 1e-9);
  EXPECT_GT(distance(at::linalg_solve(M + 0.1 * eye(d), b), dense), 1e-2) << "the rank makes no difference";
  EXPECT_GT(distance(Nystrom({.rank = k, .ridge = 0.1, .seed = seed}).solve(product_with(M), b, {}).solution, dense), 1e-2);
}

TEST(Nystrom, IsExactButForTheRidgeWhereTheRankIsHighEnough) {
  const int64_t d = 30;
  std::vector<double> values = spectrum(5, 0.1, 2.0);
  values.resize(static_cast<size_t>(d), 0.0);
  const at::Tensor M = symmetric(values), b = vector(d);
  for (const double ridge : {1.0, 1e-2, 1e-5}) {
    const at::Tensor expected = at::linalg_solve(M + ridge * eye(d), b);
    EXPECT_LT(distance(Nystrom({.rank = 5, .ridge = ridge}).solve(product_with(M), b, {}).solution, expected), 1e-8) << ridge;
    EXPECT_LT(distance(Nystrom({.rank = 12, .ridge = ridge}).solve(product_with(M), b, {}).solution, expected), 1e-8) << ridge;
    EXPECT_GT(distance(Nystrom({.rank = 4, .ridge = ridge}).solve(product_with(M), b, {}).solution, expected), 1e-4) << ridge;
  }
  // Without a null space ρ → 0 is the solution.
  const at::Tensor regular = symmetric(spectrum(d, 0.1, 2.0)), exact = at::linalg_solve(regular, b);
  for (const double ridge : {1e-2, 1e-4, 1e-6}) {
    const double error = distance(Nystrom({.rank = d, .ridge = ridge}).solve(product_with(regular), b, {}).solution, exact);
    EXPECT_LT(error, ridge / 0.1);  // ρ / (λ_min + ρ) at most
    EXPECT_GT(error, 0.1 * ridge / 0.1);
  }
}

// moskomule/hypergrad's: rank 5, 10, 20 of d = 20 with ρ = 0.01 had errors of 96, 93 and 0.008, and said nothing.
TEST(Nystrom, SaysWhereTheRankIsTooLow) {
  const at::Tensor M = symmetric(spectrum(20, 0.5, 5.0)), b = vector(20), exact = at::linalg_solve(M, b);
  for (const int64_t rank : {5, 10, 20}) {
    const auto result = Nystrom({.rank = rank, .ridge = 0.01}).solve(product_with(M), b, {});
    EXPECT_NEAR(result.relative_residual, length(b - M.mv(result.solution)) / length(b),
                1e-12 * result.relative_residual + 1e-14);
    if (rank < 20) {
      EXPECT_GT(distance(result.solution, exact), 10);
      EXPECT_GT(result.relative_residual, 10);
      EXPECT_EQ(result.status, Status::kDiverged) << result.message;
      EXPECT_NE(result.message.find("larger rank"), std::string::npos);
    } else {
      EXPECT_LT(result.relative_residual, 0.02);
      EXPECT_EQ(result.status, Status::kIterationLimit);
    }
  }
}

TEST(Nystrom, DampingBelongsToTheSystemAndTheRidgeDoesNot) {
  const at::Tensor M = symmetric(spectrum(8, 0.1, 2.0)), b = vector(8);
  const auto result = Nystrom({.rank = 8, .ridge = 1e-9, .damping = 0.4}).solve(product_with(M), b, {});
  EXPECT_LT(distance(result.solution, at::linalg_solve(M + 0.4 * eye(8), b)), 1e-7);
  EXPECT_LT(result.relative_residual, 1e-7);
  const auto ridge = Nystrom({.rank = 8, .ridge = 0.4}).solve(product_with(M), b, {});
  EXPECT_LT(distance(ridge.solution, result.solution), 1e-7);
  EXPECT_GT(ridge.relative_residual, 0.1);
}

TEST(Nystrom, ReportsNegativeCurvatureAndKeepsThePositivePart) {
  const at::Tensor M = symmetric({3.0, 2.0, 1.0, -0.5}), b = vector(4);
  const auto result = Nystrom({.rank = 4, .ridge = 0.1}).solve(product_with(M), b, {});
  EXPECT_EQ(result.status, Status::kIndefinite);
  EXPECT_NEAR(result.negative_curvature.value(), -0.5, 1e-12);
  const auto [values, vectors] = at::linalg_eigh(M);
  const at::Tensor part = vectors.mm(values.clamp_min(0).diag()).mm(vectors.t()) + 0.1 * eye(4);
  EXPECT_LT(distance(result.solution, at::linalg_solve(part, b)), 1e-10);
  // With a damping beyond it the system is definite.
  const auto damped = Nystrom({.rank = 4, .ridge = 0.1, .damping = 1.0}).solve(product_with(M), b, {});
  EXPECT_NE(damped.status, Status::kIndefinite);
  EXPECT_NEAR(damped.smallest_curvature.value(), 0.5, 1e-12);
  EXPECT_NE(Nystrom({.rank = 3}).solve(product_with(at::zeros({5, 5}, at::kDouble)), vector(5), {}).status, Status::kIndefinite);
}

TEST(Nystrom, ItsApproximationIsNeverAboveAAndItsLowestNeverBelow) {
  for (const auto type : {at::kDouble, at::kFloat}) {
    const at::Tensor M = symmetric(spectrum(30, 1e-8, 1.0)).to(type);
    for (const bool coordinates : {false, true}) {
      const LowRank low = nystrom_approximation(product_with(M), 10, coordinates, 3, M.options());
      const double rounding = type == at::kDouble ? 1e-13 : 1e-5;
      EXPECT_TRUE(at::allclose(low.U.t().mm(low.U), at::eye(low.values.size(0), at::kDouble), 0, 1e-10));
      const at::Tensor rest = M.to(at::kDouble) - low.U.mul(low.values).mm(low.U.t());
      EXPECT_GT(at::linalg_eigvalsh((rest + rest.t()) / 2)[0].item<double>(), -rounding);
      EXPECT_GE(low.lowest, 1e-8 - rounding);
      EXPECT_FALSE(low.indefinite);
      EXPECT_LE(low.values.size(0), 10);
      EXPECT_GE(low.values.size(0), 5);
    }
  }
}

TEST(Nystrom, AsksForAsManyProductsAsItsRankAndOneForTheResidual) {
  int64_t products = 0;
  const at::Tensor M = symmetric(spectrum(20, 0.1, 2.0));
  const auto result = Nystrom({.rank = 7, .ridge = 1.0}).solve(counted(M, products), vector(20), {});
  EXPECT_EQ(products, 8);
  EXPECT_EQ(result.iterations, 7);
  const auto same = Nystrom({.rank = 7, .ridge = 1.0}).solve(product_with(M), vector(20), {});
  EXPECT_TRUE(at::equal(same.solution, result.solution));
  const auto other = Nystrom({.rank = 7, .ridge = 1.0, .seed = 1}).solve(product_with(M), vector(20), {});
  EXPECT_FALSE(at::equal(other.solution, result.solution));
}

TEST(Nystrom, NamesEachViolation) {
  EXPECT_EQ((NystromOptions{.rank = 0, .ridge = 0, .damping = -1, .sampling = "x"}).violations().size(), 4U);
  EXPECT_THROW(Nystrom({}).solve(product_with(symmetric({1, 2, 3}).triu()), vector(3), {}), Error);
}

}  // namespace
}  // namespace bilevel
