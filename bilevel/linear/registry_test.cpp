#include "bilevel/linear/registry.h"

#include <gtest/gtest.h>

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
  std::vector<double> errors;
  for (const auto& row : linear_solvers()) {
    const auto solver = make_linear_solver(row.name, section);
    EXPECT_EQ(solver->name(), row.name);
    EXPECT_FALSE(row.description.empty());
    errors.push_back(distance(solver->solve(product_with(M), b, {}).solution, exact));
  }
  section.finish();
  EXPECT_LT(errors[0], errors[1]);  // cg, neumann, dense
  EXPECT_GT(errors[0], 1e-3);
  EXPECT_LT(errors[2], 1e-12);
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
