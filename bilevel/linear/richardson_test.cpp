#include "bilevel/linear/richardson.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/linear/neumann.h"
#include "bilevel/linear/systems_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

LinearResult richardson(const Operator& A, const at::Tensor& b, int64_t K, double scale, const at::Tensor& q0 = {},
                        double tolerance = 0) {
  return Richardson({.iterations = K, .tolerance = tolerance, .scale = scale}).solve(A, b, q0);
}

TEST(Richardson, IsTheFixedPointIterationFromQ0) {
  const at::Tensor M = symmetric(spectrum(10, 0.5, 5.0)) + 0.3 * vector(100, 4).view({10, 10}), b = vector(10);
  const at::Tensor start = 0.1 * vector(10, 5);
  for (const at::Tensor& q0 : {at::zeros_like(b), start}) {
    at::Tensor q = q0;
    for (int64_t K = 1; K <= 9; ++K) {
      q = q + 0.1 * (b - M.mv(q));
      const auto result = richardson(product_with(M), b, K, 0.1, q0);
      EXPECT_LT(distance(result.solution, q), 1e-13) << K;
      EXPECT_EQ(result.iterations, K);
      EXPECT_EQ(static_cast<int64_t>(result.history.size()), K);
      EXPECT_NEAR(result.relative_residual, length(b - M.mv(q)) / length(b), 1e-14);
    }
  }
  // Neumann with K products has a term more.
  EXPECT_TRUE(at::allclose(richardson(product_with(M), b, 8, 0.1).solution,
                           Neumann({.iterations = 7, .scale = 0.1}).solve(product_with(M), b, {}).solution, 1e-13));
}

// At 1e6 no one waits for the end: the error after K steps is that of the theory, which goes to zero.
TEST(Richardson, ItsErrorShrinksAsTheoryHasItOnEachCondition) {
  for (const double condition : {10.0, 1e3, 1e6}) {
    const at::Tensor lambda = at::tensor(spectrum(12, 1 / condition, 1.0), at::kDouble), exact = vector(12, 3);
    Operator A;
    A.dim = 12;
    A.apply = [&](const at::Tensor& v) { return lambda * v; };
    for (const int64_t K : {50, 3000}) {
      const at::Tensor expected = (1 - lambda).pow(K) * exact;
      if (length(expected) < 1e-9) continue;
      const at::Tensor error = exact - richardson(A, lambda * exact, K, 1.0).solution;
      EXPECT_LT(distance(error, expected), 1e-6) << condition << ", " << K;
    }
    if (condition > 1e3) continue;
    EXPECT_LT(distance(richardson(A, lambda * exact, 40000, 1.0).solution, exact), 1e-11) << condition;
  }
}

TEST(Richardson, StopsAtTheTolerance) {
  const at::Tensor M = symmetric(spectrum(8, 0.4, 10.0)), b = vector(8);
  int64_t products = 0;
  const auto result = Richardson({.iterations = 10000, .tolerance = 1e-8, .scale = 0.1}).solve(counted(M, products), b, {});
  EXPECT_EQ(result.status, Status::kConverged);
  EXPECT_EQ(products, result.iterations);
  EXPECT_LE(result.relative_residual, 1e-8);
  EXPECT_GT(result.relative_residual, 0.9e-8) << "it could have stopped earlier";
  const auto again = richardson(product_with(M), b, 100, 0.1, result.solution, 1e-8);
  EXPECT_EQ(again.iterations, 0);
  EXPECT_EQ(again.status, Status::kConverged);
}

TEST(Richardson, ReportsDivergenceAndReturnsTheIterateOfTheSmallestResidual) {
  const at::Tensor M = at::diag(at::tensor({10.0, 3.0, 1.0}, at::kDouble)), b = at::tensor({1e-3, 1.0, 1.0}, at::kDouble);
  const auto result = richardson(product_with(M), b, 1000, 0.22);
  EXPECT_EQ(result.status, Status::kDiverged);
  EXPECT_LT(result.relative_residual, 0.2);
  EXPECT_NEAR(result.relative_residual, *std::min_element(result.history.begin(), result.history.end()), 1e-15);
  EXPECT_NEAR(result.relative_residual, length(b - M.mv(result.solution)) / length(b), 1e-14);
  EXPECT_EQ(richardson(product_with(-M), b, 100, 0.1).status, Status::kDiverged);
  // An unsymmetric one may rise on its way.
  const at::Tensor jordan = at::tensor({1.0, 8.0, 0.0, 1.0}, at::kDouble).view({2, 2}),
                   right = at::tensor({0.0, 1.0}, at::kDouble);
  const auto rises = richardson(product_with(jordan), right, 300, 0.2, {}, 1e-10);
  EXPECT_EQ(rises.status, Status::kConverged) << rises.message;
  EXPECT_GT(*std::max_element(rises.history.begin(), rises.history.end()), 1);
}

TEST(Richardson, TakesTheScaleOfTheOperatorWhereItHasNone) {
  const at::Tensor M = symmetric(spectrum(6, 0.5, 4.0)), b = vector(6);
  Operator A = product_with(M);
  EXPECT_THROW(richardson(A, b, 3, 0.0), Error);
  A.step_size = at::scalar_tensor(0.3, at::kDouble);
  EXPECT_TRUE(at::equal(richardson(A, b, 3, 0.0).solution, richardson(product_with(M), b, 3, 0.3).solution));
  A.step_size = at::linspace(0.1, 0.4, 6, at::kDouble);
  EXPECT_LT(distance(richardson(A, b, 3000, 0.0).solution, at::linalg_solve(M, b)), 1e-12);
  EXPECT_EQ((RichardsonOptions{.iterations = 0, .tolerance = -1, .damping = -1, .scale = -1}).violations().size(), 4U);
}

}  // namespace
}  // namespace bilevel
