#include "bilevel/linear/preconditioner.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/minres.h"
#include "bilevel/linear/systems_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

PreconditionerOptions of(const std::string& kind) { return {.kind = kind, .probes = 30, .rank = 12}; }

/// Badly scaled coordinates, and otherwise of condition 4.
at::Tensor badly_scaled(int64_t d) {
  const at::Tensor s = at::tensor(spectrum(d, 1.0, 1e3), at::kDouble);
  const at::Tensor M = s.unsqueeze(1) * symmetric(spectrum(d, 0.5, 2.0)) * s;
  return (M + M.t()) / 2;
}

/// Ten large eigenvalues, the others near 0.1.
at::Tensor low_rank_and_noise(int64_t d) {
  std::vector<double> values = spectrum(10, 10.0, 1e4);
  for (int64_t i = 10; i < d; ++i) values.push_back(0.1 + 0.01 * static_cast<double>(i) / static_cast<double>(d));
  return symmetric(values);
}

at::Tensor matrix(const std::function<at::Tensor(const at::Tensor&)>& M_inverse, int64_t d) {
  return M_inverse(at::eye(d, at::kDouble));
}

TEST(Preconditioner, DiagonalIsThatOfAWhereTheProbesReach) {
  const at::Tensor M = badly_scaled(20);
  const auto exact = make_preconditioner(product_with(M), 0.5, M, of("diagonal"));
  EXPECT_TRUE(at::allclose(matrix(exact, 20), (1 / (M.diagonal() + 0.5)).diag(), 1e-12, 1e-14));
  // Hutchinson's estimate is off by √(2 Σ_{j≠i} A_ij² / probes).
  const at::Tensor large = symmetric(spectrum(60, 0.5, 2.0));
  PreconditionerOptions options = of("diagonal");
  options.probes = 50;
  int64_t products = 0;
  const auto estimate = make_preconditioner(counted(large, products), 0.0, large, options);
  EXPECT_EQ(products, 50);
  const at::Tensor diagonal = 1 / matrix(estimate, 60).diagonal();
  EXPECT_LT(distance(diagonal, large.diagonal()), 0.15);
  EXPECT_GT(distance(diagonal, large.diagonal()), 1e-6);
}

TEST(Preconditioner, NystromIsTheFormulaOfItsApproximation) {
  // Of full rank the approximation is A, and M = (A + δ) / (λ_min + δ).
  const at::Tensor M = symmetric(spectrum(12, 0.3, 5.0));
  const auto full = make_preconditioner(product_with(M), 0.2, M, of("nystrom"));
  EXPECT_TRUE(at::allclose(matrix(full, 12), 0.5 * at::linalg_inv(M + 0.2 * at::eye(12, at::kDouble)), 1e-9, 1e-12));
  const at::Tensor v = vector(12);
  EXPECT_TRUE(at::allclose(full(v), matrix(full, 12).mv(v), 1e-12));
}

TEST(Preconditioner, EachSparesProductsWhereItIsMeantTo) {
  struct Case {
    std::string kind;
    at::Tensor M;
  };
  for (const auto& [kind, M] : {Case{"diagonal", badly_scaled(30)}, Case{"nystrom", low_rank_and_noise(100)}}) {
    const int64_t d = M.size(0);
    const at::Tensor b = M.mv(vector(d, 3)), exact = vector(d, 3);
    for (const bool block : {false, true}) {
      Operator A = product_with(M);
      A.blocks = block;
      A.apply = [M = M](const at::Tensor& v) { return v.dim() == 1 ? M.mv(v) : v.mm(M.t()); };
      const at::Tensor right = block ? at::stack({b, 2 * b.flip(0)}) : b;
      const auto row = [block](const LinearResult& result) { return block ? result.solution[0] : result.solution; };
      const auto plain = Cg({.iterations = 5000, .tolerance = 1e-10}).solve(A, right, {});
      const auto cg = Cg({.iterations = 5000, .tolerance = 1e-10, .preconditioner = of(kind)}).solve(A, right, {});
      EXPECT_EQ(cg.status, Status::kConverged) << kind << ": " << cg.message;
      EXPECT_LE(cg.relative_residual, 1e-10);
      EXPECT_LT(cg.iterations, plain.iterations / 2) << kind;
      EXPECT_LT(distance(row(cg), exact), 1e-5) << kind;
      const auto minres = Minres({.iterations = 5000, .tolerance = 1e-10, .preconditioner = of(kind)}).solve(A, right, {});
      EXPECT_EQ(minres.status, Status::kConverged) << kind << ": " << minres.message;
      EXPECT_LE(minres.relative_residual, 1e-10);
      EXPECT_LT(minres.iterations, plain.iterations / 2) << kind;
      EXPECT_LT(distance(row(minres), exact), 1e-5) << kind;
      // It over-estimates the smallest eigenvalue still, or says nothing.
      const double least = at::linalg_eigvalsh(M)[0].item<double>();
      EXPECT_GE(cg.smallest_curvature.value_or(least), least * (1 - 1e-6));
    }
  }
}

TEST(Preconditioner, TheOperatorsOwnIsUsedByItsNameAlone) {
  const at::Tensor M = badly_scaled(30), b = vector(30);
  Operator A = product_with(M);
  int64_t used = 0;
  A.precondition = [&](const at::Tensor& v) {
    ++used;
    return v / M.diagonal();
  };
  for (const char* kind : {"none", "diagonal", "nystrom"}) {
    Cg({.iterations = 5, .preconditioner = of(kind)}).solve(A, b, {});
    Minres({.iterations = 5, .preconditioner = of(kind)}).solve(A, b, {});
    EXPECT_EQ(used, 0) << kind;
  }
  Minres({.iterations = 5}).solve(A, b, {});
  EXPECT_GT(used, 4);
  used = 0;
  Cg({.iterations = 5}).solve(A, b, {});
  EXPECT_GT(used, 4);
}

TEST(Preconditioner, MinresWithOneLeavesTheSmallestResidualInItsNorm) {
  const at::Tensor M = symmetric({3.0, 2.0, 1.0, 0.5, -0.3, -1.0, 4.0, 0.1, -2.0, 1.5}), b = vector(10);
  const at::Tensor P = symmetric(spectrum(10, 0.5, 2.0), 6), root = [&] {
    const auto [values, vectors] = at::linalg_eigh(P);
    return vectors.mul(values.sqrt()).mm(vectors.t());
  }();
  Operator A = product_with(M);
  A.precondition = [&](const at::Tensor& v) { return P.mv(v); };
  for (const int64_t K : {1, 3, 5}) {
    // With P = M⁻¹ = R R the system R A R (R⁻¹ q) = R b.
    const at::Tensor expected = root.mv(smallest_residual(root.mm(M).mm(root), root.mv(b), K, at::zeros_like(b)));
    EXPECT_LT(distance(Minres({.iterations = K, .tolerance = 0}).solve(A, b, {}).solution, expected), 1e-9) << K;
  }
}

TEST(Preconditioner, NoneIsMadeFromProductsThatSayNothing) {
  const at::Tensor M = symmetric(spectrum(40, 0.1, 10.0));
  for (const char* kind : {"diagonal", "nystrom"}) {
    for (const at::Tensor& useless : {at::full_like(M, std::nan("")), at::zeros_like(M)}) {
      Operator A = product_with(useless);
      A.symmetric = true;
      EXPECT_FALSE(make_preconditioner(A, 0.0, M, of(kind))) << kind;
    }
    // Indefinite: positive definite all the same.
    const at::Tensor S = symmetric({3.0, 1.0, -0.5, -2.0, 0.2});
    const auto made = make_preconditioner(product_with(S), 0.0, S, of(kind));
    ASSERT_TRUE(made);
    const at::Tensor P = matrix(made, 5);
    EXPECT_GT(at::linalg_eigvalsh((P + P.t()) / 2)[0].item<double>(), 0) << kind;
  }
}

TEST(Preconditioner, OneThatIsNotPositiveDefiniteIsReported) {
  const at::Tensor M = symmetric(spectrum(10, 0.1, 10.0)), b = vector(10);
  const at::Tensor signs = at::tensor({1.0, -1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0, -1.0, 1.0}, at::kDouble);
  for (const at::Tensor& P : {-at::ones_like(b), signs}) {
    Operator A = product_with(M);
    A.precondition = [&](const at::Tensor& v) { return v * P; };
    for (const LinearResult& result : {Cg({}).solve(A, b, {}), Minres({}).solve(A, b, {})}) {
      EXPECT_EQ(result.status, Status::kIndefinite) << result.message;
      EXPECT_NE(result.message.find("preconditioner"), std::string::npos) << result.message;
      EXPECT_TRUE(result.solution.isfinite().all().item<bool>());
      EXPECT_LE(result.relative_residual, 1);
    }
  }
}

TEST(Preconditioner, IsReadByNameOrAsTheBooleanOfOld) {
  const auto parse = [](const std::string& text) {
    Section section = Config::parse(text, "test.toml").root();
    PreconditionerOptions options;
    read(section, options);
    section.finish();
    return options;
  };
  EXPECT_EQ(parse("").kind, "none");
  EXPECT_EQ(parse("precondition = true").kind, "problem");
  EXPECT_EQ(parse("precondition = false").kind, "none");
  EXPECT_EQ(parse("precondition = \"diagonal\"\nprobes = 7").probes, 7);
  EXPECT_EQ(parse("precondition = \"nystrom\"\nrank = 9").rank, 9);
  EXPECT_THROW(parse("precondition = \"nystrm\""), Error);
  EXPECT_THROW(parse("precondition = \"diagonal\"\nrank = 9"), Error);
  EXPECT_THROW(parse("precondition = 3"), Error);
  EXPECT_EQ((PreconditionerOptions{.kind = "x", .probes = 0, .rank = 0}).violations().size(), 3U);
  // Read twice from one section, by the estimator and by the solver, it is the same.
  Config config = Config::parse("", "test.toml");
  Section section = config.root();
  EXPECT_EQ(read_precondition(section), "none");
  EXPECT_EQ(read_precondition(section), "none");
  EXPECT_NE(config.text().find("precondition = \"none\""), std::string::npos) << config.text();
}

}  // namespace
}  // namespace bilevel
