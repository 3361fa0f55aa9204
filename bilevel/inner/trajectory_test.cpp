#include "bilevel/inner/trajectory.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <map>

#include "bilevel/core/error.h"
#include "bilevel/core/memory_meter.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel {
namespace {

using Points = std::map<int64_t, Tensors>;  // by t: y, state…, gradient

Points walk(const Problem& problem, const RuleSolver& solver, TrajectoryPolicy policy, int64_t* first = nullptr) {
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer();
  const auto solution = solver.solve(oracle, x, 0, {.y = problem.initial_inner(x, 0), .first_step = 40}, policy);
  Trajectory& trajectory = *solution.trajectory;
  EXPECT_EQ(trajectory.size(), solution.steps);
  if (first) *first = trajectory.first();
  Points points;
  at::Tensor y_next = solution.y;
  for (int64_t t = trajectory.size() - 1; t >= trajectory.first(); --t) {
    const Step step = trajectory.take(t);
    EXPECT_EQ(step.input.step, t);
    // The step that was taken leads to the point after it.
    EXPECT_LT((solver.rule().step(step.input).y - y_next).abs().max().item<double>(), 1e-14);
    EXPECT_TRUE(at::equal(step.linearization->residual(), step.input.gradient));
    y_next = step.input.y;
    points[t] = {step.input.y};
    for (const auto& s : step.input.state) points[t].push_back(s);
    points[t].push_back(step.input.gradient);
  }
  return points;
}

void expect_equal(const Points& a, const Points& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [t, tensors] : a) {
    const auto& other = b.at(t);
    ASSERT_EQ(tensors.size(), other.size());
    for (size_t i = 0; i < tensors.size(); ++i) EXPECT_TRUE(at::equal(tensors[i], other[i])) << "t = " << t << ", tensor " << i;
  }
}

TEST(Trajectory, AllMemoryPoliciesGiveTheSameBits) {
  const MlpProblem problem;
  const auto rules = [](int i) -> std::unique_ptr<UpdateRule> {
    if (i == 0) return std::make_unique<SgdRule>(SgdRuleOptions{});
    if (i == 1) return std::make_unique<SgdRule>(SgdRuleOptions{.momentum = 0.9, .weight_decay = 0.01, .nesterov = true});
    return std::make_unique<AdamRule>(AdamRuleOptions{.amsgrad = true});
  };
  for (int i = 0; i < 3; ++i) {
    for (const bool minibatches : {false, true}) {
      const RuleSolver solver(rules(i), {.lr = 0.05, .steps = 23},
                              minibatches ? BatchPlan::shuffled(20, 6, Stream(1, "batches")) : BatchPlan::full());
      for (const int64_t last : {-1, 0, 1, 5, 7, 50}) {
        const Points graphs = walk(problem, solver, {true, Memory::kGraphs, last});
        EXPECT_EQ(graphs.size(), static_cast<size_t>(last < 0 ? 23 : std::min<int64_t>(last, 23)));
        expect_equal(graphs, walk(problem, solver, {true, Memory::kStates, last}));
        expect_equal(graphs, walk(problem, solver, {true, Memory::kCheckpoints, last}));
      }
    }
  }
}

TEST(Trajectory, KnowsItsStepsOnlyAtTheEndWhereThereIsATolerance) {
  const RidgeProblem problem;
  const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{}), {.steps = 10000, .tolerance = 1e-3});
  for (const int64_t last : {-1, 3}) {
    const Points graphs = walk(problem, solver, {true, Memory::kGraphs, last});
    EXPECT_GT(graphs.size(), 2u);
    EXPECT_LT(graphs.size(), 10000u);
    expect_equal(graphs, walk(problem, solver, {true, Memory::kStates, last}));
    expect_equal(graphs, walk(problem, solver, {true, Memory::kCheckpoints, last}));
  }
}

TEST(Trajectory, SaysWhetherItReachesTheStart) {
  const RidgeProblem problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{}), {.lr = 0.1, .steps = 8});
  for (const int64_t last : {-1, 8, 9, 7}) {
    const auto solution = solver.solve(oracle, x, 0, {.y = problem.initial_inner(x, 0)}, {true, Memory::kStates, last});
    EXPECT_EQ(solution.trajectory->whole(), last != 7);
    EXPECT_EQ(solution.trajectory->first(), last == 7 ? 1 : 0);
  }
}

TEST(Trajectory, RefusesStepsOutOfTurn) {
  const RidgeProblem problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{}), {.lr = 0.1, .steps = 8});
  const auto solution = solver.solve(oracle, x, 0, {.y = problem.initial_inner(x, 0)}, {true, Memory::kCheckpoints, 2});
  EXPECT_THROW(solution.trajectory->take(6), Error);
  solution.trajectory->take(7);
  EXPECT_THROW(solution.trajectory->take(7), Error);
  solution.trajectory->take(6);
  EXPECT_THROW(solution.trajectory->take(5), Error);
}

/// Peak bytes of a solve and its way back.
double peak(Memory memory, int64_t steps, int64_t last = -1) {
  const RidgeProblem problem(RidgeOptions{.features = 500, .inner_samples = 20, .outer_samples = 4});
  const AutodiffOracle oracle(problem);
  const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{.momentum = 0.5}), {.lr = 1e-4, .steps = steps});
  const at::Tensor x = problem.initial_outer(), y0 = problem.initial_inner(x, 0);
  const MemoryMeter meter;
  const auto solution = solver.solve(oracle, x, 0, {.y = y0}, {true, memory, last});
  for (int64_t t = steps - 1; t >= solution.trajectory->first(); --t) solution.trajectory->take(t);
  return static_cast<double>(meter.peak_bytes());
}

// With B + S m(T) bytes at the peak, differences show the growth of m without what every step needs.
TEST(Trajectory, PeakMemoryGrowsAsPromised) {
  const auto growth = [](Memory memory) {
    const double at16 = peak(memory, 16), at64 = peak(memory, 64), at256 = peak(memory, 256);
    return std::array<double, 2>{at64 - at16, at256 - at64};
  };
  const auto graphs = growth(Memory::kGraphs), states = growth(Memory::kStates), checkpoints = growth(Memory::kCheckpoints);
  EXPECT_NEAR(graphs[1] / graphs[0], 4.0, 0.2);  // (256 − 64)/(64 − 16)
  EXPECT_NEAR(states[1] / states[0], 4.0, 0.2);
  EXPECT_NEAR(checkpoints[1] / checkpoints[0], 2.0, 0.2);  // (16 − 8)/(8 − 4)
  EXPECT_LT(states[1], 0.6 * graphs[1]);
  EXPECT_LT(checkpoints[1], 0.2 * states[1]);
  EXPECT_NEAR(states[0] / 48, 2 * 500 * 8, 0.05 * 2 * 500 * 8);  // y and the momentum buffer of each step
}

TEST(Trajectory, TruncationKeepsOnlyTheLastSteps) {
  for (const Memory memory : {Memory::kGraphs, Memory::kStates, Memory::kCheckpoints}) {
    // Lengths at which the first step of the last ten is a checkpoint.
    EXPECT_NEAR(peak(memory, 130, 10) / peak(memory, 50, 10), 1.0, 0.02);
    EXPECT_GT(peak(memory, 130), 1.2 * peak(memory, 130, 10));
  }
}

// Fewest steps that must be done in all, the way there included, to go back through l of them with c checkpoints, by trying every
// place for the next one.
int64_t fewest(int64_t l, int64_t c) {
  static std::map<std::pair<int64_t, int64_t>, int64_t> known;
  if (l == 1) return 0;
  if (c == 1) return l * (l - 1) / 2;
  const auto found = known.find({l, c});
  if (found != known.end()) return found->second;
  int64_t best = std::numeric_limits<int64_t>::max();
  for (int64_t j = 1; j < l; ++j) best = std::min(best, j + fewest(j, c) + fewest(l - j, c - 1));
  return known[{l, c}] = best;
}

TEST(Trajectory, PlacesCheckpointsSoThatTheFewestStepsAreTakenAgain) {
  std::function<int64_t(int64_t, int64_t)> ours = [&](int64_t l, int64_t c) -> int64_t {
    if (l == 1) return 0;
    if (c == 1) return l * (l - 1) / 2;
    const int64_t j = next_checkpoint(l, c);
    return j + ours(j, c) + ours(l - j, c - 1);
  };
  for (int64_t l = 2; l <= 90; ++l) {
    for (int64_t c = 2; c <= 12; ++c) EXPECT_EQ(ours(l, c), fewest(l, c)) << l << " steps, " << c << " checkpoints";
  }
  EXPECT_LT(next_checkpoint(1'000'000'000, 3), 1'000'000'000);
}

// Gradients of the way back alone.
int64_t replayed(int64_t steps, int64_t slots) {
  const RidgeProblem problem;
  const AutodiffOracle autodiff(problem);
  const CountedOracle oracle(autodiff);
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{.momentum = 0.5}), {.lr = 0.1, .steps = steps});
  const auto solution = solver.solve(oracle, x, 0, {.y = problem.initial_inner(x, 0)},
                                     {.keep = true, .memory = Memory::kCheckpoints, .slots = slots});
  const int64_t before = oracle.cost().gradients;
  for (int64_t t = steps - 1; t >= 0; --t) solution.trajectory->take(t);
  return oracle.cost().gradients - before - steps;  // each step's own linearization is one
}

TEST(Trajectory, TakesStepsAgainAsOftenAsRevolveSays) {
  for (const int64_t steps : {1, 2, 7, 40, 90}) {
    for (const int64_t slots : {1, 2, 3, 6}) {
      EXPECT_EQ(replayed(steps, slots), fewest(steps, slots) - (steps - 1)) << steps << " steps, " << slots << " checkpoints";
    }
    EXPECT_EQ(replayed(steps, steps), 0);
  }
}

TEST(Trajectory, GivesTheSameBitsWithAnyNumberOfCheckpoints) {
  const MlpProblem problem;
  for (const double tolerance : {0.0, 0.1}) {  // with a tolerance the places are found on the way
    const RuleSolver solver(std::make_unique<AdamRule>(AdamRuleOptions{}),
                            {.lr = 0.05, .steps = tolerance > 0 ? 300 : 23, .tolerance = tolerance},
                            tolerance > 0 ? BatchPlan::full() : BatchPlan::shuffled(20, 6, Stream(1, "batches")));
    for (const int64_t last : {-1, 0, 1, 7}) {
      const Points states = walk(problem, solver, {.keep = true, .memory = Memory::kStates, .last = last});
      for (const int64_t slots : {1, 2, 3, 9, 40}) {
        SCOPED_TRACE(fmt::format("last {}, {} slots, tolerance {}", last, slots, tolerance));
        expect_equal(states, walk(problem, solver, {.keep = true, .memory = Memory::kCheckpoints, .last = last, .slots = slots}));
      }
    }
  }
}

TEST(Trajectory, KnowsTheStartAndWhatTheLastStepDependedOn) {
  const MlpProblem problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer(), y0 = problem.initial_inner(x, 0) + 0.25;
  const RuleSolver solver(std::make_unique<AdamRule>(AdamRuleOptions{}), {.lr = 0.05, .steps = 9});
  for (const TrajectoryPolicy& policy : {TrajectoryPolicy{.keep = true, .memory = Memory::kCheckpoints, .slots = 1},
                                         {.keep = true, .memory = Memory::kStates},
                                         {.keep = true, .memory = Memory::kStates, .last = 1}}) {
    const auto solution = solver.solve(oracle, x, 0, {.y = y0}, policy);
    const RuleInput last = solution.trajectory->last_input();
    EXPECT_TRUE(at::equal(solver.rule().step(last).y, solution.y));
    EXPECT_EQ(last.step, 8);
    if (policy.last == 1) {
      EXPECT_THROW(solution.trajectory->start(), Error);
    } else {
      EXPECT_TRUE(at::equal(solution.trajectory->start().y, y0));
    }
  }
}

TEST(Trajectory, StaysWithinItsBudget) {
  for (const int64_t features : {200, 2000}) {
    const RidgeProblem problem(RidgeOptions{.features = features, .inner_samples = 30, .outer_samples = 7});
    const AutodiffOracle oracle(problem);
    const at::Tensor x = problem.initial_outer(), y0 = problem.initial_inner(x, 0);
    for (const bool adam : {false, true}) {
      std::unique_ptr<UpdateRule> rule;
      if (adam) rule = std::make_unique<AdamRule>(AdamRuleOptions{});
      if (!adam) rule = std::make_unique<SgdRule>(SgdRuleOptions{.momentum = 0.5});
      const RuleSolver solver(std::move(rule), {.lr = 1e-4, .steps = 40});
      const auto solve = [&](int64_t budget) {
        return solver.solve(oracle, x, 0, {.y = y0}, {.keep = true, .memory = Memory::kCheckpoints, .budget = budget});
      };
      int64_t least = 0;
      std::map<Memory, int> seen;
      for (int64_t budget = 1000; budget < 100'000'000; budget = budget * 3 / 2) {
        const MemoryMeter meter;
        try {
          const auto solution = solve(budget);
          seen[solution.trajectory->memory()]++;
          const Gradients outer = oracle.outer(x, solution.y, Batch{});
          for (int64_t t = 39; t >= 0; --t) {
            const Step step = solution.trajectory->take(t);
            const RuleCotangent bar = solver.rule().vjp(step.input, outer.y, solver.rule().fresh_state(outer.y));
            const Vjp both = step.linearization->vjp(bar.gradient);
          }
          EXPECT_LE(meter.peak_bytes(), budget);
          if (least == 0) {
            least = budget;
            EXPECT_GT(3 * meter.peak_bytes(), budget) << "the least that is allowed should nearly be needed";
          }
        } catch (const Error& error) {
          EXPECT_EQ(least, 0) << "a larger budget was refused: " << error.what();
          EXPECT_THAT(error.what(), ::testing::HasSubstr("is the least"));
        }
      }
      for (const Memory memory : {Memory::kGraphs, Memory::kStates, Memory::kCheckpoints}) EXPECT_GT(seen[memory], 0);
    }
  }
}

}  // namespace
}  // namespace bilevel
