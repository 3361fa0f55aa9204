#include "bilevel/linear/cg.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/core/memory_meter.h"
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
  const at::Tensor V = krylov_basis(M, r0, K);
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

TEST(Cg, GivesTheCurvatureOfTheDirectionThatEndedIt) {
  const at::Tensor M = symmetric({5.0, 3.0, 2.0, 1.0, -0.5}), b = vector(5);
  const auto result = cg(product_with(M), b, 20);
  ASSERT_EQ(result.status, Status::kIndefinite);
  // A Rayleigh quotient: negative, and never below the smallest eigenvalue.
  EXPECT_LT(result.negative_curvature.value(), 0);
  EXPECT_GE(result.negative_curvature.value(), -0.5);
  EXPECT_LE(result.smallest_curvature.value(), result.negative_curvature.value());
  const auto line = cg(product_with(at::diag(at::tensor({-0.25, -0.25}, at::kDouble))), vector(2), 5);
  EXPECT_NEAR(line.negative_curvature.value(), -0.25, 1e-15);
  EXPECT_FALSE(cg(product_with(symmetric({1, 2, 3})), vector(3), 2).negative_curvature.has_value());
}

TEST(Cg, SmallestCurvatureIsTheSmallestRitzValueAndNeverBelowTheSmallestEigenvalue) {
  const at::Tensor M = symmetric(spectrum(25, 0.1, 10.0)), b = vector(25);
  for (const int64_t K : {1, 2, 5, 10, 15}) {
    const at::Tensor V = krylov_basis(M, b, K);
    const double ritz = at::linalg_eigvalsh(V.t().mm(M).mm(V))[0].item<double>();
    EXPECT_NEAR(cg(product_with(M), b, K).smallest_curvature.value(), ritz, 1e-9) << K;
    EXPECT_GT(ritz, 0.1);
  }
  EXPECT_NEAR(cg(product_with(M), b, 100, {}, 1e-13).smallest_curvature.value(), 0.1, 1e-8);
  // With damping it is that of the system that is solved.
  EXPECT_NEAR(Cg({.iterations = 100, .damping = 2.0}).solve(product_with(M), b, {}).smallest_curvature.value(), 2.1, 1e-3);
  // Over restarts, in float, too.
  const auto single = cg(product_with(M.to(at::kFloat)), b.to(at::kFloat), 500);
  EXPECT_NEAR(single.smallest_curvature.value(), 0.1, 1e-4);
}

TEST(Cg, AnIterationAllocatesNothingButWhatTheProductReturns) {
  constexpr int64_t kD = 100000;
  const at::Tensor diagonal = at::linspace(1, 100, kD, at::kDouble), b = vector(kD);
  for (const double damping : {0.0, 0.5}) {
    std::vector<int64_t> between;  // the most held at a time between two products, beyond what was there at the first
    std::unique_ptr<MemoryMeter> meter;
    Operator A;
    A.dim = kD;
    A.apply = [&](const at::Tensor& v) {
      if (meter) between.push_back(meter->peak_bytes());
      meter.reset();
      const at::Tensor product = v * diagonal;
      meter = std::make_unique<MemoryMeter>();
      return product;
    };
    const auto result = Cg({.iterations = 9, .tolerance = 0, .damping = damping}).solve(A, b, {});
    meter.reset();
    ASSERT_EQ(result.iterations, 9);
    ASSERT_EQ(between.size(), 9U);  // the last product is the residual's
    // A few numbers, where a vector takes 800 000 bytes. The last one is not between two iterations.
    for (size_t i = 0; i + 1 < between.size(); ++i) EXPECT_LT(between[i], 1024) << i;
  }
}

// ---- Published defects ----

// moskomule/hypergrad, and leopard-ai/betty before issue 15: the new direction is built from the old residual, which leaves an
// error of a few per cent whatever K is.
TEST(Cg, DoesNotStallAsWithADirectionFromTheOldResidual) {
  const at::Tensor M = symmetric(spectrum(20, 0.1, 10.0)), b = vector(20), exact = at::linalg_solve(M, b);
  at::Tensor q = at::zeros_like(b), r = b, p = b;
  for (int i = 0; i < 50; ++i) {
    const at::Tensor Ap = M.mv(p), rr = r.dot(r), alpha = rr / p.dot(Ap);
    q = q + alpha * p;
    const at::Tensor r_new = r - alpha * Ap;
    p = r + r_new.dot(r_new) / rr * p;  // the defect
    r = r_new;
  }
  EXPECT_GT(distance(q, exact), 1e-2);
  EXPECT_LT(distance(cg(product_with(M), b, 50).solution, exact), 1e-12);
}

// hypertorch's CG returns the iterate before the one that met the tolerance: zero where one iteration is enough.
TEST(Cg, ReturnsTheIterateThatMetTheToleranceAlsoAfterOneIteration) {
  const at::Tensor b = at::tensor({2.0, 3.0}, at::kDouble);
  for (const double tolerance : {0.0, 1e-10, 1e-2}) {
    const auto result = cg(product_with(at::eye(2, at::kDouble)), b, 10, {}, tolerance);
    EXPECT_EQ(result.iterations, 1);
    EXPECT_LT(distance(result.solution, b), 1e-15);
  }
}

// Betty's cg_alpha = α scales the product in the step length and not in the residual: its norm explodes (3.3 times too long after
// 3 iterations, 27 after 20). A scale of A is to change q by its inverse and nothing else.
TEST(Cg, DoesNotDependOnTheScaleOfA) {
  const at::Tensor M = symmetric(spectrum(20, 0.1, 10.0)), b = vector(20);
  for (const int64_t K : {1, 3, 5, 10}) {
    const at::Tensor q = cg(product_with(M), b, K).solution;
    for (const double alpha : {0.1, 7.0, 1e-8, 1e8}) {
      EXPECT_LT(distance(alpha * cg(product_with(alpha * M), b, K).solution, q), 1e-8) << K << ", " << alpha;
    }
  }
}

// NeuralBo adds the damping twice.
TEST(Cg, AddsTheDampingOnce) {
  const at::Tensor M = symmetric(spectrum(6, 0.5, 4.0)), b = vector(6);
  const auto q = [&](double damping) {
    return Cg({.iterations = 30, .damping = damping}).solve(product_with(M), b, {}).solution;
  };
  const auto exact = [&](double shift) { return at::linalg_solve(M + shift * at::eye(6, at::kDouble), b); };
  EXPECT_LT(distance(q(0.3), exact(0.3)), 1e-9);
  EXPECT_GT(distance(exact(0.6), exact(0.3)), 1e-2);
}

// The error in the energy norm falls by (√κ − 1)/(√κ + 1) an iteration, on a spectrum that is dense enough for it to find no
// gaps.
TEST(Cg, ItsRateIsThatOfTheRootOfTheCondition) {
  for (const double condition : {10.0, 1e3, 1e6}) {
    constexpr int64_t kD = 8000;
    // Chebyshev's distribution: the worst one.
    const at::Tensor angle = (at::arange(kD, at::kDouble) + 0.5) * (M_PI / kD);
    const at::Tensor lambda = 0.5 * (1 + 1 / condition) + 0.5 * (1 - 1 / condition) * at::cos(angle);
    Operator A;
    A.dim = kD;
    A.apply = [&](const at::Tensor& v) { return lambda * v; };
    const at::Tensor exact = at::ones({kD}, at::kDouble) / lambda.sqrt();  // so that all have the same energy
    const auto energy = [&](int64_t K) {
      const at::Tensor e = cg(A, lambda * exact, K).solution - exact;
      return std::sqrt((e * lambda * e).sum().item<double>());
    };
    const double root = std::sqrt(condition), expected = std::log((root - 1) / (root + 1));
    const auto from = static_cast<int64_t>(std::max(root, 10.0)), to = 5 * from / 2;
    const double observed = std::log(energy(to) / energy(from)) / static_cast<double>(to - from);
    EXPECT_NEAR(observed, expected, 0.1 * std::abs(expected)) << condition;
    // and its bound holds
    EXPECT_LT(energy(to), 2 * std::exp(expected * static_cast<double>(to)) * std::sqrt(static_cast<double>(kD))) << condition;
  }
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
