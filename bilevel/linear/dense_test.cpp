#include "bilevel/linear/dense.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/systems_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

LinearResult dense(const Operator& A, const at::Tensor& b, DenseOptions options = {}) { return Dense(options).solve(A, b, {}); }

// The expected solutions are chosen first, and b = M q computed from them: nothing of the solver is used.
TEST(Dense, SolvesSymmetricIndefiniteAndUnsymmetricSystems) {
  const at::Tensor q = vector(30, 7);
  const at::Tensor definite = symmetric(spectrum(30, 0.01, 10.0));
  at::Tensor values = at::linspace(-5, 6, 30, at::kDouble);
  const at::Tensor indefinite = symmetric({values.const_data_ptr<double>(), values.const_data_ptr<double>() + 30});
  const at::Tensor unsymmetric = indefinite + vector(900, 8).view({30, 30});
  for (const at::Tensor& M : {definite, indefinite, unsymmetric}) {
    const auto result = dense(product_with(M), M.mv(q));
    EXPECT_EQ(result.status, Status::kConverged) << result.message;
    EXPECT_LT(distance(result.solution, q), 1e-11);
    EXPECT_LT(result.relative_residual, 1e-12);
    EXPECT_EQ(result.iterations, 30);
    EXPECT_EQ(result.history.size(), 1U);
  }
  // What a transposed matrix, or CG with a few products, would give is something else.
  EXPECT_GT(distance(dense(product_with(unsymmetric.t()), unsymmetric.mv(q)).solution, q), 1e-2);
  EXPECT_GT(distance(Cg({.iterations = 10}).solve(product_with(definite), definite.mv(q), {}).solution, q), 1e-2);
}

TEST(Dense, TakesBlocksOfProductsWhereTheOperatorDoes) {
  constexpr int64_t kD = 150;  // more than two blocks, the last not full
  const at::Tensor M = at::eye(kD, at::kDouble) * 20 + vector(kD * kD, 8).view({kD, kD});
  const at::Tensor q = vector(kD, 7);
  int64_t calls = 0;
  Operator A;
  A.dim = kD;
  A.symmetric = false;
  A.blocks = true;
  A.apply = [&](const at::Tensor& v) {
    ++calls;
    return v.mm(M.t());
  };
  // The residual of the solution is one product of a vector.
  const auto blocks = A.apply;
  A.apply = [&](const at::Tensor& v) { return v.dim() == 1 ? M.mv(v) : blocks(v); };
  EXPECT_LT(distance(dense(A, M.mv(q)).solution, q), 1e-11);
  EXPECT_EQ(calls, 3);
}

TEST(Dense, AsksForDProductsAndOneForTheResidual) {
  int64_t products = 0;
  dense(counted(symmetric({1, 2, 3, 4}), products), vector(4));
  EXPECT_EQ(products, 5);
}

TEST(Dense, AddsTheDamping) {
  const at::Tensor M = symmetric({4.0, 1.0, -0.5}), q = vector(3);
  const at::Tensor b = M.mv(q) + 0.7 * q;
  const auto result = dense(product_with(M), b, {.damping = 0.7});
  EXPECT_LT(distance(result.solution, q), 1e-13);
  EXPECT_LT(result.relative_residual, 1e-13);
  EXPECT_GT(distance(dense(product_with(M), b).solution, q), 1e-2);
}

TEST(Dense, ReportsASingularMatrixAndGivesTheSmallestLeastSquaresSolution) {
  const at::Tensor M = symmetric({0.0, 1.0, 2.0, 3.0});
  const at::Tensor q = M.mv(vector(4));  // in the range of M, so it is the smallest of all solutions
  const auto consistent = dense(product_with(M), M.mv(q));
  EXPECT_EQ(consistent.status, Status::kSingular);
  EXPECT_LT(distance(consistent.solution, q), 1e-12);
  EXPECT_LT(consistent.relative_residual, 1e-12);
  const auto zero = dense(product_with(at::zeros({4, 4}, at::kDouble)), vector(4));
  EXPECT_EQ(zero.status, Status::kSingular);
  EXPECT_EQ(length(zero.solution), 0);
  EXPECT_NEAR(zero.relative_residual, 1, 1e-14);
  EXPECT_EQ(dense(product_with(M.to(at::kFloat)), vector(4).to(at::kFloat)).status, Status::kSingular);
}

TEST(Dense, WorksInFloatAndAtAnyScaleOfB) {
  const at::Tensor M = symmetric(spectrum(20, 0.1, 10.0)), q = vector(20);
  const at::Tensor b = M.mv(q);
  for (const double scale : {1e12, 1e-12, 1e200}) {
    EXPECT_LT(distance(dense(product_with(M), b * scale).solution / scale, q), 1e-12) << scale;
  }
  const auto single = dense(product_with(M.to(at::kFloat)), b.to(at::kFloat));
  EXPECT_EQ(single.solution.scalar_type(), at::kFloat);
  EXPECT_LT(distance(single.solution, q), 1e-4);
  EXPECT_EQ(length(dense(product_with(M), at::zeros_like(b)).solution), 0);
}

TEST(Dense, ReportsWhatIsNotFinite) {
  const auto result = dense(breaking(symmetric({1, 2, 3}), 2), vector(3));
  EXPECT_EQ(result.status, Status::kNonFinite);
  EXPECT_EQ(length(result.solution), 0);
}

TEST(Dense, RefusesAMatrixThatIsTooLargeAndSaysSo) {
  try {
    dense(product_with(symmetric({1, 2, 3})), vector(3), {.max_dim = 2});
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("dimension 3, more than max_dim = 2"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace bilevel
