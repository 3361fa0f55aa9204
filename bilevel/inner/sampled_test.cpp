#include "bilevel/inner/sampled.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/config.h"
#include "bilevel/core/error.h"
#include "bilevel/inner/registry.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::sampled_test {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<InnerSolver> solver_of(const std::string& toml, uint64_t seed = 0) {
  const QuadraticProblem problem;
  Section section = Config::parse(toml, "sampled").root();
  auto solver = make_inner_solver(section, problem, problem.initial_outer(), seed, {});
  section.finish();
  return solver;
}

const char* const kThree = R"(solver = "sampled"
[candidates.short]
lr = 0.1
steps = 2
[candidates.long]
lr = 0.1
steps = 7
[candidates.adam]
rule = "adam"
lr = 0.05
steps = 4
)";

TEST(SampledSolver, EachSolveIsThatOfTheCandidateThatWasDrawn) {
  const QuadraticProblem problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer(), y0 = problem.initial_inner(x, 0);
  const auto solver = solver_of(kThree);
  const auto& sampled = dynamic_cast<const SampledSolver&>(*solver);
  const std::vector<std::string> alone = {"lr = 0.1\nsteps = 2", "lr = 0.1\nsteps = 7", "rule = \"adam\"\nlr = 0.05\nsteps = 4"};
  std::vector<int64_t> times(3);
  for (int64_t t = 0; t < 300; ++t) {
    const size_t which = sampled.drawn(t, 0);
    ++times[which];
    if (t > 5) continue;
    const InnerSolution found = sampled.solve(oracle, x, 0, {.y = y0, .first_step = t}, {});
    const InnerSolution expected = solver_of(alone[which])->solve(oracle, x, 0, {.y = y0, .first_step = t}, {});
    EXPECT_TRUE(at::equal(found.y, expected.y));
    EXPECT_EQ(found.steps, expected.steps);
    EXPECT_TRUE(found.state.empty());
  }
  for (const int64_t n : times) EXPECT_NEAR(static_cast<double>(n), 100, 30);  // 3.7 standard deviations
}

TEST(SampledSolver, DrawsBySeedInnerProblemAndStep) {
  const auto draws = [](uint64_t seed, int64_t slice) {
    const auto solver = solver_of(kThree, seed);
    std::vector<size_t> found;
    for (int64_t t = 0; t < 40; ++t) found.push_back(dynamic_cast<const SampledSolver&>(*solver).drawn(t, slice));
    return found;
  };
  EXPECT_EQ(draws(0, 0), draws(0, 0));
  EXPECT_NE(draws(0, 0), draws(1, 0));
  EXPECT_NE(draws(0, 0), draws(0, 1));
}

TEST(SampledSolver, SaysWhatIsWrong) {
  EXPECT_THROW(SampledSolver({}, 0), Error);
  const auto message = [](const std::string& toml) -> std::string {
    try {
      solver_of(toml);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message("solver = \"sampled\""), HasSubstr("candidates"));
  EXPECT_THAT(message("solver = \"sampled\"\ncandidates = 3"), HasSubstr("candidates"));
  EXPECT_THAT(message("solver = \"sampled\"\n[candidates.a]\nweight_decay = 0.1"), HasSubstr("weight decay"));
  EXPECT_THAT(message("solver = \"sampled\"\n[candidates.a]\nstep = 3"), HasSubstr("steps"));
  EXPECT_THROW(solver_of(kThree)->step_size(QuadraticProblem(), {}), Error);
}

}  // namespace
}  // namespace bilevel::sampled_test
