// What every solver of the registry promises, in one table: a new solver is one new row, and until it has one a test fails.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <ostream>
#include <set>

#include "bilevel/linear/registry.h"
#include "bilevel/linear/systems_for_tests.h"

namespace bilevel::solvers_test {
namespace {

using namespace test;

struct SolverCase {
  std::string name;
  std::string keys;          // with which it solves a system of condition 10, dimension 12, to the tolerance below
  std::string few;           // two products, so far from the solution
  double tolerance;          // on the error, in double
  bool unsymmetric = false;  // it also solves unsymmetric systems
  bool indefinite = false;   // and indefinite ones
  bool warm = true;          // it uses q0
  double condition = 0;      // the highest condition with which `hard` gets there; 0: another test follows its rate
  std::string hard = {};
  double hard_tolerance = 1e-6;
};

void PrintTo(const SolverCase& row, std::ostream* os) { *os << row.name; }

const std::vector<SolverCase>& rows() {
  static const std::vector<SolverCase> all = {
      {.name = "cg",
       .keys = "iterations = 60\ntolerance = 1e-13",
       .few = "iterations = 2",
       .tolerance = 1e-11,
       .condition = 1e6,
       .hard = "iterations = 400\ntolerance = 1e-14"},
      {.name = "neumann",
       .keys = "iterations = 600\nscale = 1.0",
       .few = "iterations = 1\nscale = 1.0",
       .tolerance = 1e-11,
       .unsymmetric = true,
       .condition = 1e3,
       .hard = "iterations = 20000\nscale = 1.0"},
      {.name = "normal-cg",
       .keys = "iterations = 100\ntolerance = 1e-13",
       .few = "iterations = 2",
       .tolerance = 1e-11,
       .unsymmetric = true,
       .indefinite = true,
       .condition = 1e6,
       .hard = "iterations = 4000\ntolerance = 1e-14",
       .hard_tolerance = 1e-5},
      {.name = "minres",
       .keys = "iterations = 60\ntolerance = 1e-13",
       .few = "iterations = 2",
       .tolerance = 1e-11,
       .indefinite = true,
       .condition = 1e6,
       .hard = "iterations = 400\ntolerance = 1e-14"},
      {.name = "gmres",
       .keys = "iterations = 60\ntolerance = 1e-13",
       .few = "iterations = 2",
       .tolerance = 1e-11,
       .unsymmetric = true,
       .indefinite = true,
       .condition = 1e6,
       .hard = "iterations = 60\ntolerance = 1e-14"},
      {.name = "bicgstab",
       .keys = "iterations = 100\ntolerance = 1e-13",
       .few = "iterations = 2",
       .tolerance = 1e-11,
       .unsymmetric = true,
       .condition = 1e6,
       .hard = "iterations = 2000\ntolerance = 1e-14"},
      {.name = "richardson",
       .keys = "iterations = 600\ntolerance = 1e-13\nscale = 1.0",
       .few = "iterations = 2\nscale = 1.0",
       .tolerance = 1e-11,
       .unsymmetric = true,
       .condition = 1e3,
       .hard = "iterations = 20000\ntolerance = 1e-14\nscale = 1.0"},
      {.name = "nystrom",
       .keys = "rank = 12\nridge = 1e-9",
       .few = "rank = 2",
       .tolerance = 1e-6,
       .warm = false,
       .condition = 1e6,
       .hard = "rank = 20\nridge = 1e-13",
       .hard_tolerance = 1e-5},
      {.name = "sgd",
       .keys = "iterations = 1200\nscale = 1.0",
       .few = "iterations = 2\nscale = 1.0",
       .tolerance = 1e-11,
       .unsymmetric = true,
       .condition = 1e3,
       .hard = "iterations = 40000\nscale = 1.0"},
      {.name = "dense",
       .keys = "",
       .few = "",
       .tolerance = 1e-13,
       .unsymmetric = true,
       .indefinite = true,
       .warm = false,
       .condition = 1e6,
       .hard = "",
       .hard_tolerance = 1e-9},
  };
  return all;
}

std::unique_ptr<LinearSolver> solver(const SolverCase& row, const std::string& keys) {
  Section section = Config::parse(keys, "test.toml").root();
  auto made = make_linear_solver(row.name, section);
  section.finish();
  return made;
}

Operator operator_of(const at::Tensor& M) {
  Operator A = product_with(M);
  A.apply_transposed = [M](const at::Tensor& v) { return M.t().mv(v); };
  return A;
}

Operator blocks_of(const at::Tensor& M) {
  Operator A = operator_of(M);
  A.blocks = true;
  A.apply = [M](const at::Tensor& v) { return v.dim() == 1 ? M.mv(v) : v.mm(M.t()); };
  A.apply_transposed = [M](const at::Tensor& v) { return v.dim() == 1 ? M.t().mv(v) : v.mm(M); };
  return A;
}

/// Eigenvalues from 1/κ to 1.
at::Tensor spd(int64_t d, double condition) { return symmetric(spectrum(d, 1 / condition, 1.0)); }

/// No longer symmetric, with singular values from about 1/κ to 1 and eigenvalues in the right half plane.
at::Tensor unsymmetric(int64_t d, double condition) {
  const at::Tensor S = vector(d * d, 31).view({d, d});
  return spd(d, condition) + 0.3 / condition * (S - S.t());
}

class Solvers : public ::testing::TestWithParam<SolverCase> {};

TEST_P(Solvers, SolvesAndReportsTheTrueResidualInDoubleAndFloat) {
  const SolverCase& row = GetParam();
  const at::Tensor M = spd(12, 10), exact = vector(12, 3), b = M.mv(exact);
  const auto result = solver(row, row.keys)->solve(operator_of(M), b, {});
  EXPECT_FALSE(failed(result.status)) << result.message;
  EXPECT_LT(distance(result.solution, exact), row.tolerance);
  EXPECT_NEAR(result.relative_residual, length(b - M.mv(result.solution)) / length(b), 1e-14);
  EXPECT_FALSE(result.message.empty());

  const at::Tensor Mf = M.to(at::kFloat), bf = b.to(at::kFloat);
  const auto single = solver(row, row.keys)->solve(operator_of(Mf), bf, {});
  EXPECT_EQ(single.solution.scalar_type(), at::kFloat);
  EXPECT_FALSE(failed(single.status)) << single.message;
  EXPECT_LT(distance(single.solution, exact), 1e-5);
  EXPECT_NEAR(single.relative_residual, length(bf - Mf.mv(single.solution)) / length(bf), 1e-6);

  if (row.few.empty()) return;
  const auto early = solver(row, row.few)->solve(operator_of(M), b, {});
  EXPECT_GT(distance(early.solution, exact), 1e-2) << "too easy";
  EXPECT_NEAR(early.relative_residual, length(b - M.mv(early.solution)) / length(b), 1e-13);
}

TEST_P(Solvers, ItsErrorGoesToZeroOnEachCondition) {
  const SolverCase& row = GetParam();
  for (const double condition : {10.0, 1e3, 1e6}) {
    if (condition > row.condition) continue;
    const at::Tensor M = spd(20, condition), exact = vector(20, 3);
    const auto result = solver(row, row.hard)->solve(operator_of(M), M.mv(exact), {});
    EXPECT_FALSE(failed(result.status)) << result.message;
    EXPECT_LT(distance(result.solution, exact), row.hard_tolerance) << condition << ": " << result.message;
    if (!row.unsymmetric) continue;
    const at::Tensor U = unsymmetric(20, condition);
    const auto other = solver(row, row.hard)->solve(operator_of(U), U.mv(exact), {});
    EXPECT_FALSE(failed(other.status)) << other.message;
    EXPECT_LT(distance(other.solution, exact), row.hard_tolerance) << condition << ", unsymmetric: " << other.message;
    EXPECT_GT(distance(at::linalg_solve(U.t(), U.mv(exact)), exact), 1e-2) << "the transpose would pass";
  }
}

TEST_P(Solvers, SolvesAnIndefiniteSystemOrSaysThatItCannot) {
  const SolverCase& row = GetParam();
  const at::Tensor M = symmetric({1.0, 0.7, 0.5, 0.3, -0.2, -0.6}), exact = vector(6, 3);
  const auto result = solver(row, row.keys)->solve(operator_of(M), M.mv(exact), {});
  if (row.indefinite) {
    EXPECT_FALSE(failed(result.status)) << result.message;
    EXPECT_LT(distance(result.solution, exact), 1e-10);
  } else if (row.name != "bicgstab") {  // may get through, or not
    EXPECT_TRUE(result.status == Status::kIndefinite || result.status == Status::kDiverged) << result.message;
  }
  if (result.status == Status::kIndefinite) {
    ASSERT_TRUE(result.negative_curvature.has_value());
    EXPECT_LE(*result.negative_curvature, 0);
    EXPECT_GE(*result.negative_curvature, -0.6 - 1e-12);
  }
  EXPECT_TRUE(result.solution.isfinite().all().item<bool>());
}

TEST_P(Solvers, GivesZeroForAZeroRightHandSideAndRefusesOneThatIsNotFinite) {
  const SolverCase& row = GetParam();
  const at::Tensor M = spd(5, 10);
  const auto zero = solver(row, row.keys)->solve(operator_of(M), at::zeros({5}, at::kDouble), vector(5));
  EXPECT_EQ(length(zero.solution), 0);
  EXPECT_EQ(zero.status, Status::kConverged);
  EXPECT_EQ(zero.relative_residual, 0);
  for (const double bad : {std::nan(""), static_cast<double>(INFINITY)}) {
    const auto result = solver(row, row.keys)->solve(operator_of(M), at::full({5}, bad, at::kDouble), {});
    EXPECT_EQ(result.status, Status::kNonFinite);
    EXPECT_EQ(length(result.solution), 0);
    EXPECT_TRUE(std::isinf(result.relative_residual));
  }
}

TEST_P(Solvers, ReportsAnOperatorThatIsNotFinite) {
  const SolverCase& row = GetParam();
  const at::Tensor M = spd(12, 10), b = vector(12);
  for (const int64_t n : {1, 2, 3, 5, 8}) {
    for (const bool infinite : {false, true}) {
      int64_t done = 0;
      Operator A = operator_of(M);
      A.apply = [&](const at::Tensor& v) {
        return ++done >= n ? at::full_like(v, infinite ? static_cast<double>(INFINITY) : std::nan("")) : M.mv(v);
      };
      const auto result = solver(row, row.keys)->solve(A, b, {});
      EXPECT_EQ(result.status, Status::kNonFinite) << n << ": " << result.message;
      EXPECT_TRUE(result.solution.isfinite().all().item<bool>()) << n;
      EXPECT_TRUE(std::isfinite(result.relative_residual)) << n;
      EXPECT_LT(length(result.solution), 1e3 * length(b)) << n;
    }
  }
}

TEST_P(Solvers, DoesNotDependOnTheScaleOfB) {
  const SolverCase& row = GetParam();
  const at::Tensor M = spd(12, 10), b = vector(12);
  const auto solve = [&](const std::string& keys, const at::Tensor& right) {
    return solver(row, keys)->solve(operator_of(M.to(right.scalar_type())), right, {}).solution;
  };
  const at::Tensor few = solve(row.few, b);
  for (const double scale : {1e12, 1e-12, 1e200, 1e-200}) EXPECT_LT(distance(solve(row.few, b * scale) / scale, few), 1e-12);
  for (const double scale : {1e12, 1e-12, 1e30, 1e-30}) {
    EXPECT_LT(distance(solve(row.few, b.to(at::kFloat) * scale).to(at::kDouble) / scale, few), 1e-4);
  }
}

TEST_P(Solvers, GoesOnFromAWarmStartAndDropsABadOne) {
  const SolverCase& row = GetParam();
  const at::Tensor M = spd(12, 10), b = vector(12), exact = at::linalg_solve(M, b);
  const auto few = [&](const at::Tensor& q0) { return solver(row, row.few)->solve(operator_of(M), b, q0); };
  const double cold = distance(few({}).solution, exact);
  const double warm = distance(few(exact + 1e-3 * vector(12, 9)).solution, exact);
  if (row.warm) {
    EXPECT_LT(warm, 1e-2 * cold);
  } else {
    EXPECT_EQ(warm, cold);
  }
  for (const at::Tensor& bad : {-30 * exact, at::full_like(b, std::nan("")), at::full_like(b, INFINITY)}) {
    EXPECT_TRUE(at::equal(few(bad).solution, few({}).solution));
  }
}

TEST_P(Solvers, SolvesTheRowsOfABlockAsIfEachWereAlone) {
  const SolverCase& row = GetParam();
  for (const at::Tensor& M : {spd(12, 30), unsymmetric(12, 30)}) {
    if (!row.unsymmetric && !at::equal(M, M.t())) continue;
    at::Tensor B = vector(5 * 12, 4).view({5, 12});
    B[1].zero_();
    B[2].mul_(1e8);
    // Soon solved, while the others go on: an eigenvector.
    B[3].copy_(at::equal(M, M.t()) ? std::get<1>(at::linalg_eigh(M)).select(1, 11) : B[3]);
    at::Tensor Q0 = 0.5 * vector(5 * 12, 5).view({5, 12});
    Q0[0].zero_();
    for (const std::string& keys : {row.keys, row.few}) {
      for (const at::Tensor& q0 : {at::Tensor(), Q0}) {
        const auto together = solver(row, keys)->solve(blocks_of(M), B, q0);
        ASSERT_EQ(together.solution.sizes(), B.sizes());
        double worst = 0;
        int64_t longest = 0;
        for (int64_t i = 0; i < 5; ++i) {
          const auto alone = solver(row, keys)->solve(operator_of(M), B[i], q0.defined() ? q0[i] : q0);
          EXPECT_LE(length(together.solution[i] - alone.solution), 1e-9 * length(alone.solution)) << i << " of " << keys;
          worst = std::max(worst, alone.relative_residual);
          longest = std::max(longest, alone.iterations);
        }
        EXPECT_NEAR(together.relative_residual, worst, 1e-9 + 1e-6 * worst);
        EXPECT_LE(std::abs(together.iterations - longest), keys == row.keys ? 2 : 0);  // rounding decides the last ones
        EXPECT_EQ(length(together.solution[1]), 0);
      }
    }
    B[4].fill_(std::nan(""));
    const auto broken = solver(row, row.keys)->solve(blocks_of(M), B, {});
    EXPECT_EQ(broken.status, Status::kNonFinite);
    EXPECT_NE(broken.message.find("number 5"), std::string::npos) << broken.message;
    EXPECT_LT(length(broken.solution[0] - solver(row, row.keys)->solve(operator_of(M), B[0], {}).solution),
              1e-9 * length(broken.solution[0]));
  }
}

TEST_P(Solvers, TakesDampingFromItsKeys) {
  const SolverCase& row = GetParam();
  const at::Tensor M = spd(12, 10) - 0.05 * at::eye(12, at::kDouble), exact = vector(12, 3);
  const at::Tensor b = M.mv(exact) + 0.05 * exact;
  const auto result = solver(row, row.keys + "\ndamping = 0.05")->solve(operator_of(M), b, {});
  EXPECT_LT(distance(result.solution, exact), row.tolerance * 10) << result.message;
  EXPECT_GT(distance(at::linalg_solve(M, b), exact), 1e-2);
}

TEST_P(Solvers, GivesTheSameBitsTwice) {
  const SolverCase& row = GetParam();
  const at::Tensor M = spd(12, 10), b = vector(12);
  const auto once = solver(row, row.few)->solve(operator_of(M), b, {}),
             twice = solver(row, row.few)->solve(operator_of(M), b, {});
  EXPECT_TRUE(at::equal(once.solution, twice.solution));
  EXPECT_EQ(once.history, twice.history);
}

TEST_P(Solvers, TakesAProductThatGivesItsArgumentBackAndOneOfDimensionOne) {
  const SolverCase& row = GetParam();
  Operator identity;
  identity.dim = 4;
  identity.apply = [](const at::Tensor& v) { return v; };
  identity.apply_transposed = identity.apply;
  const at::Tensor b = vector(4), copy = b.clone();
  EXPECT_LT(distance(solver(row, row.keys)->solve(identity, b, {}).solution, b), 1e-8);
  EXPECT_TRUE(at::equal(b, copy));
  identity.dim = 1;
  EXPECT_LT(distance(solver(row, row.keys)->solve(identity, b.narrow(0, 0, 1), {}).solution, b.narrow(0, 0, 1)), 1e-8);
}

INSTANTIATE_TEST_SUITE_P(All, Solvers, ::testing::ValuesIn(rows()), [](const auto& test) {
  std::string name = test.param.name;
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

TEST(SolverRows, HaveEverySolverOfTheRegistry) {
  std::set<std::string> names;
  for (const auto& row : rows()) names.insert(row.name);
  for (const auto& solver : linear_solvers()) EXPECT_TRUE(names.contains(solver.name)) << "no row for " << solver.name;
}

}  // namespace
}  // namespace bilevel::solvers_test
