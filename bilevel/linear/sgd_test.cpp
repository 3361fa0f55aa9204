#include "bilevel/linear/sgd.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/linear/systems_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

/// A = (1/n) Σ a_i a_iᵀ + 0.2 I, and its estimate from four samples drawn anew for each k.
struct Batches {
  at::Tensor a = Stream(7, "samples").at(0).normal({200, 6});
  at::Tensor M = a.t().mm(a) / 200 + 0.2 * at::eye(6, at::kDouble);
  std::vector<int64_t> asked;

  at::Tensor batch(uint64_t seed, int64_t k) const {
    const at::Tensor rows = a.index_select(0, Stream(seed, "batch").at(k).integers(200, {4}));
    return rows.t().mm(rows) / 4 + 0.2 * at::eye(6, at::kDouble);
  }
  Operator products(uint64_t seed) {
    Operator A = product_with(M);
    A.apply_batch = [this, seed](const at::Tensor& v, int64_t k) {
      asked.push_back(k);
      return batch(seed, k).mv(v);
    };
    return A;
  }
};

TEST(SgdSolver, IsItsRecursionWithTheMeanOfTheTail) {
  Batches batches;
  const at::Tensor b = vector(6), start = 0.1 * vector(6, 5);
  for (const double tail : {0.0, 0.25, 1.0}) {
    const int64_t K = 8, first = tail == 0 ? 7 : tail == 1 ? 0 : 6;
    at::Tensor q = start, sum = at::zeros_like(b);
    for (int64_t k = 0; k < K; ++k) {
      q = q - 0.05 * ((batches.batch(1, k) + 0.3 * at::eye(6, at::kDouble)).mv(q) - b);
      if (k >= first) sum = sum + q;
    }
    const auto result =
        SgdSolver({.iterations = K, .scale = 0.05, .tail = tail, .damping = 0.3}).solve(batches.products(1), b, start);
    EXPECT_LT(distance(result.solution, sum / static_cast<double>(K - first)), 1e-13) << tail;
    const at::Tensor r = b - batches.M.mv(result.solution) - 0.3 * result.solution;
    EXPECT_NEAR(result.relative_residual, length(r) / length(b), 1e-14) << "that of A, not of a batch";
    EXPECT_EQ(result.iterations, K);
  }
  EXPECT_EQ(batches.asked, (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7}))
      << "each batch fresh";
}

TEST(SgdSolver, TheMeanOfTheTailComesCloserTheLongerItIs) {
  Batches batches;
  const at::Tensor b = vector(6), exact = at::linalg_solve(batches.M, b);
  const auto error = [&](int64_t K, double tail) {
    double sum = 0;
    for (uint64_t seed = 1; seed <= 20; ++seed) {
      const auto result = SgdSolver({.iterations = K, .scale = 0.03, .tail = tail}).solve(batches.products(seed), b, {});
      sum += std::pow(distance(result.solution, exact), 2);
    }
    return std::sqrt(sum / 20);
  };
  const double shorter = error(1000, 0.5), longer = error(4000, 0.5), last = error(4000, 0.0);
  EXPECT_LT(longer, 0.65 * shorter);  // half by the law of 1/√K
  EXPECT_LT(longer, 0.5 * last);
  EXPECT_LT(longer, 0.05);
}

TEST(SgdSolver, FromFullProductsItIsThePlainFixedPoint) {
  const at::Tensor M = symmetric(spectrum(6, 0.5, 4.0)), b = vector(6);
  at::Tensor q = at::zeros_like(b);
  for (int k = 0; k < 9; ++k) q = q + 0.2 * (b - M.mv(q));
  EXPECT_LT(distance(SgdSolver({.iterations = 9, .scale = 0.2, .tail = 0}).solve(product_with(M), b, {}).solution, q), 1e-13);
  Operator A = product_with(M);
  EXPECT_THROW(SgdSolver({}).solve(A, b, {}), Error);
  A.step_size = at::scalar_tensor(0.2, at::kDouble);
  EXPECT_LT(distance(SgdSolver({.iterations = 9, .tail = 0}).solve(A, b, {}).solution, q), 1e-13);
}

TEST(SgdSolver, ReportsDivergenceAndReturnsTheStart) {
  const at::Tensor M = symmetric(spectrum(6, 0.5, 4.0)), b = vector(6), start = at::linalg_solve(M, b) + 1e-3 * vector(6, 4);
  for (const int64_t K : {20, 5000}) {  // with and without overflow
    const auto result = SgdSolver({.iterations = K, .scale = 0.8}).solve(product_with(M), b, start);
    EXPECT_EQ(result.status, Status::kDiverged) << result.message;
    EXPECT_LT(distance(result.solution, start), 1e-14);
  }
  EXPECT_EQ((SgdSolverOptions{.iterations = 0, .scale = -1, .tail = 2, .damping = -1}).violations().size(), 4U);
}

}  // namespace
}  // namespace bilevel
