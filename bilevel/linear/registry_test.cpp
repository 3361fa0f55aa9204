#include "bilevel/linear/registry.h"

#include <gtest/gtest.h>

#include <map>

#include "bilevel/core/error.h"
#include "bilevel/linear/systems_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

TEST(LinearRegistry, MakesEachSolverWithItsOptionsAndNamesTheNearestForAnUnknownOne) {
  Config config = Config::parse("iterations = 3\ndamping = 0.5\nscale = 0.2\n", "test.toml");
  Section section = config.root();
  const at::Tensor M = symmetric(spectrum(12, 0.5, 5.0)), b = vector(12);
  const at::Tensor exact = at::linalg_solve(M + 0.5 * at::eye(12, at::kDouble), b);
  std::map<std::string, double> errors;
  for (const auto& row : linear_solvers()) {
    const auto solver = make_linear_solver(row.name, section);
    EXPECT_EQ(solver->name(), row.name);
    EXPECT_FALSE(row.description.empty());
    errors[row.name] = distance(solver->solve(product_with(M), b, {}).solution, exact);
  }
  section.finish();
  EXPECT_EQ(errors.size(), linear_solvers().size());
  EXPECT_LT(errors["dense"], 1e-12);
  EXPECT_LT(errors["nystrom"], 1e-1);  // as many products as A has columns, and a ridge of 0.01
  EXPECT_GT(errors["nystrom"], 1e-4);
  // Three products: each did as it was told, and none is another.
  for (const auto* name : {"cg", "neumann", "normal-cg", "minres", "gmres", "bicgstab", "richardson", "sgd"}) {
    EXPECT_GT(errors[name], 1e-3) << name;
    EXPECT_LT(errors[name], 1.0) << name;
  }
  EXPECT_LT(errors["cg"], errors["neumann"]);
  EXPECT_LT(errors["neumann"], errors["richardson"]);  // one term more
  EXPECT_LT(errors["minres"], errors["richardson"]);
  EXPECT_NEAR(errors["minres"], errors["gmres"], 1e-12);  // the same iterate of a symmetric A
  EXPECT_LT(errors["richardson"], errors["sgd"]);         // the tail's mean trails
  try {
    make_linear_solver("neuman", section);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("Did you mean \"neumann\""), std::string::npos) << error.what();
  }
  Section bad = Config::parse("iterations = 0\n", "test.toml").root();
  EXPECT_THROW(make_linear_solver("cg", bad), Error);
}

}  // namespace
}  // namespace bilevel
