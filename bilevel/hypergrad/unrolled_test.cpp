#include "bilevel/hypergrad/unrolled.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/core/memory_meter.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/linear/neumann.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::unrolled_test {
namespace {

using namespace testing;
using ::testing::HasSubstr;

PlainRule plain(double lr) {
  PlainRule rule;
  rule.lr = lr;
  return rule;
}

std::vector<std::pair<std::string, PlainRule>> all_rules() {
  PlainRule momentum = plain(0.05), nesterov = plain(0.05), decay = plain(0.1), adam = plain(0.03), adamw = plain(0.03);
  momentum.momentum = nesterov.momentum = 0.9;
  nesterov.nesterov = true;
  nesterov.weight_decay = decay.weight_decay = 0.1;
  adam.kind = adamw.kind = PlainRule::Kind::kAdam;
  adam.weight_decay = 0.02;
  adamw.weight_decay = 0.1;
  adamw.decoupled = true;
  return {{"sgd", plain(0.1)},       {"momentum", momentum}, {"nesterov with decay", nesterov},
          {"sgd with decay", decay}, {"adam", adam},         {"adamw", adamw}};
}

// F_T by the engine's own inner solver.
double loss_after(const Problem& problem, const RuleSolver& solver, const at::Tensor& x) {
  const AutodiffOracle oracle(problem);
  InnerStart start;
  start.y = problem.initial_inner(x, 0).detach();
  return oracle.outer_value(x, solver.solve(oracle, x, 0, start, {}).y, Batch{}).item<double>();
}

TEST(Unrolled, EqualsOneGraphThroughAllStepsForEveryRule) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  for (const auto& [name, rule] : all_rules()) {
    const Hypergradient h = estimate(Unrolled(), problem, rule_solver(rule, 12), x);
    EXPECT_LT(relative_error(h.value, unrolled_gradient(problem, x, rule, 12)), 1e-9) << name;
    EXPECT_NEAR(h.outer_loss, unrolled_loss(problem, x, rule, 12).item<double>(), 1e-12) << name;
    EXPECT_GT(relative_error(h.direct, h.value), 0.01) << name;
    EXPECT_EQ(h.grade, Grade::kOk) << h.message;
    EXPECT_EQ(h.certificate.differentiates, "F_T");
  }
}

TEST(Unrolled, EqualsDifferencesOfTheLossAfterTStepsForEveryRule) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  for (const auto& [name, rule] : all_rules()) {
    const RuleSolver solver = rule_solver(rule, 12);
    const auto loss = [&](const at::Tensor& at_x) { return loss_after(problem, solver, at_x); };
    EXPECT_LT(relative_error(estimate(Unrolled(), problem, solver, x).value, differences(loss, x)), 1e-6) << name;
  }
}

TEST(Unrolled, GoesBackThroughTheSameMinibatches) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver =
      rule_solver(plain(0.5), 15, BatchPlan::shuffled(problem.inner_samples(), 7, Stream(3, "inner batches")));
  const auto loss = [&](const at::Tensor& at_x) { return loss_after(problem, solver, at_x); };
  const at::Tensor value = estimate(Unrolled(), problem, solver, x).value;
  EXPECT_LT(relative_error(value, differences(loss, x)), 1e-6);
  EXPECT_GT(relative_error(value, unrolled_gradient(problem, x, plain(0.5), 15)), 0.01);  // the full batch's
}

TEST(Unrolled, TruncatedHoldsThePointBeforeTheLastStepsFixed) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  for (const auto& [name, rule] : all_rules()) {
    const Hypergradient h = estimate(Unrolled({.steps = 4}), problem, rule_solver(rule, 12), x);
    EXPECT_LT(relative_error(h.value, unrolled_gradient(problem, x, rule, 12, 8)), 1e-9) << name;
    EXPECT_GT(relative_error(h.value, unrolled_gradient(problem, x, rule, 12)), 0.01) << name;
    EXPECT_GT(relative_error(h.value, unrolled_gradient(problem, x, rule, 12, 9)), 0.01) << name;
  }
  // More steps than there are is all of them.
  const PlainRule rule = plain(0.1);
  const Hypergradient whole = estimate(Unrolled({.steps = 40}), problem, rule_solver(rule, 12), x);
  EXPECT_LT(relative_error(whole.value, unrolled_gradient(problem, x, rule, 12)), 1e-9);
  EXPECT_EQ(whole.certificate.differentiates, "F_T");
}

TEST(Unrolled, MemoryPoliciesAgree) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  for (const auto& [name, rule] : all_rules()) {
    for (const int64_t last : {0, 9}) {
      const RuleSolver solver = rule_solver(rule, 23);
      const at::Tensor graphs = estimate(Unrolled({last, Memory::kGraphs}), problem, solver, x).value;
      const at::Tensor states = estimate(Unrolled({last, Memory::kStates}), problem, solver, x).value;
      const at::Tensor checkpoints = estimate(Unrolled({last, Memory::kCheckpoints}), problem, solver, x).value;
      EXPECT_LT(relative_error(states, graphs), 1e-12) << name;
      EXPECT_LT(relative_error(checkpoints, graphs), 1e-12) << name;
    }
  }
}

// Peak bytes of the solve and the estimate together.
double peak(Memory memory, int64_t steps, int64_t last = 0) {
  const MlpProblem problem({.features = 10, .hidden = 40, .inner_samples = 50});
  const at::Tensor x = problem.initial_outer();
  PlainRule rule = plain(0.01);
  rule.momentum = 0.5;
  const RuleSolver solver = rule_solver(rule, steps);
  const MemoryMeter meter;
  EXPECT_EQ(estimate(Unrolled({last, memory}), problem, solver, x).grade, Grade::kOk);
  return static_cast<double>(meter.peak_bytes());
}

// With B + S m(T) bytes at the peak, differences show the growth of m without what any T needs.
TEST(Unrolled, PeakMemoryGrowsAsThePolicyPromises) {
  const auto growth = [](Memory memory) {
    const double at16 = peak(memory, 16), at64 = peak(memory, 64), at256 = peak(memory, 256);
    return std::array<double, 3>{at64 - at16, at256 - at64, at256};
  };
  const auto graphs = growth(Memory::kGraphs), states = growth(Memory::kStates), checkpoints = growth(Memory::kCheckpoints);
  EXPECT_NEAR(graphs[1] / graphs[0], 4.0, 0.1);  // (256 − 64)/(64 − 16)
  EXPECT_NEAR(states[1] / states[0], 4.0, 0.1);
  EXPECT_NEAR(checkpoints[1] / checkpoints[0], 2.0, 0.1);  // (16 − 8)/(8 − 4)
  const double point = 2.0 * 8 * static_cast<double>(MlpProblem({.features = 10, .hidden = 40}).inner_layout().size());
  EXPECT_NEAR(states[0] / (48 * point), 1.0, 0.1);      // y and the momentum of each step, and nothing else
  EXPECT_NEAR(checkpoints[0] / (8 * point), 1.0, 0.1);  // √T checkpoints, and √T points of the segment gone through
  EXPECT_GT(graphs[2], 5 * states[2]);
  EXPECT_GT(states[2], 3 * checkpoints[2]);
}

TEST(Unrolled, PeakMemoryOfTheLastStepsDoesNotGrowWithT) {
  EXPECT_NEAR(peak(Memory::kGraphs, 256, 10) / peak(Memory::kGraphs, 64, 10), 1.0, 0.02);
  EXPECT_GT(peak(Memory::kGraphs, 64), 3 * peak(Memory::kGraphs, 64, 10));
}

TEST(Unrolled, TendsToTheHypergradientAsTheInnerSolveConverges) {
  const QuadraticProblem problem({.condition = 20.0});
  const at::Tensor x = problem.initial_outer();
  double last = 1e300;
  for (const int64_t steps : {20, 60, 180}) {
    const double error =
        relative_error(estimate(Unrolled(), problem, rule_solver(plain(1.0), steps), x).value, problem.hypergradient(x));
    EXPECT_LT(error, 0.3 * last);
    last = error;
  }
  EXPECT_LT(relative_error(estimate(Unrolled(), problem, rule_solver(plain(1.0), 900), x).value, problem.hypergradient(x)),
            1e-10);
}

TEST(Unrolled, TruncatedAtTheSolutionEqualsNeumannWithOneProductLess) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer();
  const at::Tensor y = problem.solution(x);
  const RuleSolver solver = rule_solver(plain(0.8), 30);
  for (const int64_t k : {1, 2, 7, 20}) {
    const Hypergradient unrolled = estimate(Unrolled({.steps = k}), problem, solver, x, {.y = y});
    const Implicit neumann(std::make_unique<Neumann>(NeumannOptions{.iterations = k - 1}));
    const Hypergradient implicit = estimate(neumann, problem, solver, x, {.y = y});
    EXPECT_LT(relative_error(unrolled.value, implicit.value), 1e-10) << k;
    const Implicit one_more(std::make_unique<Neumann>(NeumannOptions{.iterations = k}));
    EXPECT_GT(relative_error(unrolled.value, estimate(one_more, problem, solver, x, {.y = y}).value), 1e-6) << k;
  }
}

TEST(Unrolled, DifferentiatesHyperparametersOfTheRuleThatXDetermines) {
  const MlpProblem base;
  const LearnedRuleProblem problem(base, 0.08, 0.7);
  const at::Tensor x = problem.initial_outer();
  PlainRule rule;
  rule.learned_lr = rule.learned_momentum = true;
  for (const bool nesterov : {false, true}) {
    rule.nesterov = nesterov;
    rule.momentum = 0.7;
    const RuleSolver solver = rule_solver(rule, 10);
    const at::Tensor value = estimate(Unrolled(), problem, solver, x).value;
    const at::Tensor expected = unrolled_gradient(problem, x, rule, 10);
    EXPECT_LT(relative_error(value, expected), 1e-9);
    EXPECT_LT(relative_error(value.narrow(0, x.size(0) - 2, 2), expected.narrow(0, x.size(0) - 2, 2)), 1e-9);
    EXPECT_GT(expected[-1].abs().item<double>(), 1e-3);
    const auto loss = [&](const at::Tensor& at_x) { return loss_after(problem, solver, at_x); };
    EXPECT_LT(relative_error(value, differences(loss, x)), 1e-6);
  }
}

TEST(Unrolled, DifferentiatesAStartThatDependsOnXUnlessItWasCarriedOver) {
  const SinusoidMamlProblem problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver(plain(0.1), 3);
  for (int64_t slice = 0; slice < 4; ++slice) {
    const Hypergradient h = estimate(Unrolled(), problem, solver, x, {.slice = slice});
    EXPECT_LT(relative_error(h.value, unrolled_gradient(problem, x, plain(0.1), 3, 0, slice)), 1e-10);
    const Hypergradient warm = estimate(Unrolled(), problem, solver, x, {.slice = slice, .y = x});
    EXPECT_EQ(warm.value.abs().max().item<double>(), 0.0);  // x is the start, and nothing else
  }
}

TEST(Unrolled, AtZeroStepsIsTheDirectTermAndTheStart) {
  const SinusoidMamlProblem problem;
  const at::Tensor x = problem.initial_outer();
  const at::Tensor value = estimate(Unrolled(), problem, rule_solver(plain(0.1), 0), x).value;
  EXPECT_LT(relative_error(value, outer_grad_y(problem, x, x)), 1e-12);
}

TEST(Unrolled, WorksInSinglePrecision) {
  const MlpProblem problem({.dtype = at::kFloat}), reference;
  for (const auto& [name, rule] : all_rules()) {
    const Hypergradient h = estimate(Unrolled(), problem, rule_solver(rule, 12), problem.initial_outer());
    EXPECT_EQ(h.value.scalar_type(), at::kFloat);
    const at::Tensor expected = unrolled_gradient(reference, problem.initial_outer().to(at::kDouble), rule, 12);
    EXPECT_LT(relative_error(h.value.to(at::kDouble), expected), 1e-4) << name;
  }
}

TEST(Unrolled, GradesADivergedOrNonFiniteSolveBad) {
  const QuadraticProblem problem;
  const Hypergradient diverged = estimate(Unrolled(), problem, rule_solver(plain(30.0), 40), problem.initial_outer());
  EXPECT_EQ(diverged.grade, Grade::kBad) << diverged.message;
  const at::Tensor nan = at::full_like(problem.initial_outer(), std::numeric_limits<double>::quiet_NaN());
  EXPECT_EQ(estimate(Unrolled(), problem, rule_solver(plain(0.1), 3), nan).grade, Grade::kBad);
}

TEST(Unrolled, RefusesSolversThatTakeNoStepsOfARule) {
  const QuadraticProblem problem;
  const auto objections = Unrolled().objections(problem, Lbfgs({}));
  ASSERT_EQ(objections.size(), 1u);
  EXPECT_THAT(objections[0], HasSubstr("lbfgs"));
  EXPECT_TRUE(Unrolled().objections(problem, rule_solver(plain(0.1), 3)).empty());
  EXPECT_THROW(Unrolled({.steps = -1}), Error);
}

// Bytes of the solve and the estimate together stay within any budget that is not refused, and the numbers are those of graphs.
void expect_within_budgets(const Problem& problem, const PlainRule& rule, int64_t steps, int64_t last) {
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver(rule, steps);
  const at::Tensor graphs = estimate(Unrolled({.steps = last}), problem, solver, x).value;
  int64_t least = 0, tried = 0;
  for (int64_t budget = 2000; budget < 60'000'000; budget = budget * 8 / 5) {
    const Unrolled unrolled({.steps = last, .memory = Memory::kCheckpoints, .budget = budget});
    const auto objections = unrolled.objections(problem, solver);
    if (!objections.empty()) {
      EXPECT_EQ(least, 0) << "a larger budget was refused";
      EXPECT_THAT(objections[0], HasSubstr("is the least"));
      continue;
    }
    if (least == 0) least = budget;
    ++tried;
    const MemoryMeter meter;
    const at::Tensor value = estimate(unrolled, problem, solver, x).value;
    EXPECT_LE(meter.peak_bytes(), budget);
    EXPECT_LT(relative_error(value, graphs), 1e-12);
  }
  EXPECT_GT(least, 2000);
  EXPECT_GE(tried, 5);
}

TEST(Unrolled, StaysWithinAByteBudgetAndGivesTheSameNumbers) {
  PlainRule momentum = plain(0.01), adam = plain(0.01);
  momentum.momentum = 0.5;
  adam.kind = PlainRule::Kind::kAdam;
  const MlpProblem wide({.features = 10, .hidden = 40, .inner_samples = 50});
  expect_within_budgets(wide, momentum, 30, 0);
  expect_within_budgets(wide, adam, 30, 12);
  expect_within_budgets(LogisticWeightsProblem({.features = 4, .inner_samples = 3000}), plain(0.5), 20, 0);  // dx ≫ dy
  expect_within_budgets(RidgeProblem({.features = 1000, .inner_samples = 10, .outer_samples = 300}), momentum, 25, 0);
}

TEST(Unrolled, RefusesABudgetWithoutCheckpoints) {
  EXPECT_THROW(Unrolled({.budget = 1000}), Error);
  Section section = Config::parse("memory = \"checkpoints\"\nbudget = \"3 MB\"", "u.toml").root();
  UnrolledOptions options;
  read(section, options);
  EXPECT_EQ(options.budget, 3'000'000);
}

}  // namespace
}  // namespace bilevel::unrolled_test
