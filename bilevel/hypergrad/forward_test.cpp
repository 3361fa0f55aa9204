#include "bilevel/hypergrad/forward.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/core/memory_meter.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::forward_test {
namespace {

using namespace testing;
using ::testing::HasSubstr;

std::vector<PlainRule> rules() {
  using Kind = PlainRule::Kind;
  return {{.lr = 0.1},
          {.lr = 0.05, .momentum = 0.9},
          {.lr = 0.05, .momentum = 0.9, .weight_decay = 0.1, .nesterov = true},
          {.kind = Kind::kAdam, .lr = 0.03, .weight_decay = 0.02},
          {.kind = Kind::kAdam, .lr = 0.03, .weight_decay = 0.1, .decoupled = true}};
}

TEST(Forward, EqualsOneGraphThroughAllStepsAndUnrollingForEveryRule) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  for (const PlainRule& rule : rules()) {
    const RuleSolver solver = rule_solver(rule, 12);
    const Hypergradient h = estimate(Forward(), problem, solver, x);
    EXPECT_LT(relative_error(h.value, unrolled_gradient(problem, x, rule, 12)), 1e-10);
    EXPECT_LT(relative_error(h.value, estimate(Unrolled(), problem, solver, x).value), 1e-10);
    EXPECT_GT(relative_error(h.direct, h.value), 0.01);
    EXPECT_GT(relative_error(unrolled_gradient(problem, x, rule, 12, 2), h.value), 1e-4);  // without the first two steps
    EXPECT_EQ(h.grade, Grade::kOk) << h.message;
    EXPECT_EQ(h.certificate.differentiates, "F_T");
  }
}

TEST(Forward, GoesThroughTheSameMinibatches) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver =
      rule_solver({.lr = 0.5, .momentum = 0.5}, 15, BatchPlan::shuffled(problem.inner_samples(), 7, Stream(3, "inner batches")));
  const at::Tensor unrolled = estimate(Unrolled(), problem, solver, x).value;
  EXPECT_LT(relative_error(estimate(Forward(), problem, solver, x).value, unrolled), 1e-12);
  EXPECT_GT(relative_error(unrolled_gradient(problem, x, {.lr = 0.5, .momentum = 0.5}, 15), unrolled), 0.01);
}

TEST(Forward, DifferentiatesHyperparametersOfTheRule) {
  const MlpProblem base;
  const LearnedRuleProblem problem(base, 0.08, 0.7);
  const at::Tensor x = problem.initial_outer();
  const PlainRule rule{.momentum = 0.7, .learned_lr = true, .learned_momentum = true};
  const at::Tensor value = estimate(Forward(), problem, rule_solver(rule, 10), x).value;
  const at::Tensor expected = unrolled_gradient(problem, x, rule, 10);
  EXPECT_LT(relative_error(value, expected), 1e-10);
  EXPECT_LT(relative_error(value.narrow(0, x.size(0) - 2, 2), expected.narrow(0, x.size(0) - 2, 2)), 1e-10);
}

/// x = (lr of each window of W steps, momentum, weight decay): what FDS learns (Micaelli & Storkey 2021).
class SharedScheduleProblem final : public TestProblem {
 public:
  SharedScheduleProblem(const Problem& base, std::vector<double> lr, int64_t window, double momentum, double decay)
      : base_(base), windows_(static_cast<int64_t>(lr.size())), window_(window) {
    lr.insert(lr.end(), {momentum, decay});
    outer_layout_.add("x", {windows_ + 2});
    inner_layout_ = base.inner_layout();
    x0_ = at::tensor(lr, at::kDouble);
    y0_ = base.initial_inner(base.initial_outer(), 0);
  }
  at::Tensor inner_loss(const at::Tensor& /*x*/, const at::Tensor& y, const Batch& batch) const override {
    return base_.inner_loss(base_.initial_outer(), y, batch);
  }
  at::Tensor outer_loss(const at::Tensor& /*x*/, const at::Tensor& y, const Batch& batch) const override {
    return base_.outer_loss(base_.initial_outer(), y, batch);
  }
  bool has_rule_hyperparameters() const override { return true; }
  RuleHyperparameters rule_hyperparameters(const at::Tensor& x, int64_t t) const override {
    return {{"lr", x[std::min(t / window_, windows_ - 1)]}, {"momentum", x[windows_]}, {"weight_decay", x[windows_ + 1]}};
  }

 private:
  const Problem& base_;
  int64_t windows_, window_;
};

SgdRuleOptions all_learned() {
  SgdRuleOptions sgd;
  sgd.learned = {"lr", "momentum", "weight_decay"};
  return sgd;
}

TEST(Forward, WithSharingIsReverseModeAndTheSumOfWhatEachStepGives) {
  const MlpProblem base;
  const SharedScheduleProblem shared(base, {0.2, 0.1, 0.05}, 10, 0.6, 0.01);
  const RuleSolver solver(std::make_unique<SgdRule>(all_learned()), {.steps = 30});
  const at::Tensor x = shared.initial_outer();
  const at::Tensor value = estimate(Forward(), shared, solver, x).value;
  EXPECT_LT(relative_error(value, estimate(Unrolled(), shared, solver, x).value), 1e-12);

  std::vector<double> each;
  for (const double lr : {0.2, 0.1, 0.05}) each.insert(each.end(), 10, lr);
  const SharedScheduleProblem per_step(base, each, 1, 0.6, 0.01);
  const at::Tensor of_steps = estimate(Forward(), per_step, solver, per_step.initial_outer()).value;
  const at::Tensor sums = at::cat({of_steps.narrow(0, 0, 30).reshape({3, 10}).sum(1), of_steps.narrow(0, 30, 2)});
  EXPECT_LT(relative_error(value, sums), 1e-12);
  EXPECT_GT(relative_error(value.narrow(0, 0, 3), 0.1 * sums.narrow(0, 0, 3)), 1.0);  // a sum, and no mean
  const auto F_T = [&](const at::Tensor& at_x) { return estimate(Forward(), shared, solver, at_x).outer_loss; };
  EXPECT_LT(relative_error(value, differences(F_T, x)), 1e-7);
}

TEST(Forward, GivesNothingToMomentumAndDecayWhereNoStepIsTakenYet) {
  const MlpProblem base;
  const SharedScheduleProblem problem(base, {0.0, 0.0}, 5, 0.0, 0.0);  // where FDS begins
  const at::Tensor value =
      estimate(Forward(), problem, RuleSolver(std::make_unique<SgdRule>(all_learned()), {.steps = 10}), problem.initial_outer())
          .value;
  EXPECT_GT(value.narrow(0, 0, 2).abs().min().item<double>(), 1e-3);
  EXPECT_EQ(value.narrow(0, 2, 2).abs().max().item<double>(), 0.0);
}

TEST(Forward, AsksForNoProductOfAWindowThatHasNotBegun) {
  const MlpProblem base;
  const SharedScheduleProblem problem(base, {0.2, 0.1, 0.05}, 4, 0.6, 0.01);
  const AutodiffOracle plain(problem);
  const CountedOracle oracle(plain);
  const RuleSolver solver(std::make_unique<SgdRule>(all_learned()), {.steps = 12});
  const at::Tensor x = problem.initial_outer();
  InnerSolution solution = solver.solve(oracle, x, 0, {.y = problem.initial_inner(x, 0)}, Forward().trajectory());
  const int64_t before = oracle.cost().hvps;
  EstimatorInput input{oracle, solver, x, solution, {}, {}, {}};
  Forward().estimate(input);
  // lr of window k from step 4k + 1 on; the decay from step 1 on; the momentum from step 2 on, for the first step has none.
  EXPECT_EQ(oracle.cost().hvps - before, (11 + 7 + 3) + 11 + 10);
}

TEST(Forward, DifferentiatesAStartThatDependsOnXUnlessItWasCarriedOver) {
  const SinusoidMamlProblem problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver({.lr = 0.1}, 3);
  const Hypergradient h = estimate(Forward(), problem, solver, x, {.slice = 2});
  EXPECT_LT(relative_error(h.value, unrolled_gradient(problem, x, {.lr = 0.1}, 3, 0, 2)), 1e-10);
  EXPECT_EQ(estimate(Forward(), problem, solver, x, {.slice = 2, .y = x}).value.abs().max().item<double>(), 0.0);
  EXPECT_LT(relative_error(estimate(Forward(), problem, rule_solver({.lr = 0.1}, 0), x).value, outer_grad_y(problem, x, x)),
            1e-12);
}

TEST(Forward, WorksWhereAToleranceEndsTheSolve) {
  const RidgeProblem problem;
  const at::Tensor x = problem.initial_outer();
  SgdRuleOptions sgd;
  sgd.momentum = 0.5;
  const RuleSolver solver(std::make_unique<SgdRule>(sgd), {.lr = 0.1, .steps = 10000, .tolerance = 1e-3});
  EXPECT_LT(relative_error(estimate(Forward(), problem, solver, x).value, estimate(Unrolled(), problem, solver, x).value), 1e-10);
}

double peak(const Estimator& estimator, int64_t steps) {
  const RidgeProblem problem(RidgeOptions{.features = 60, .inner_samples = 50});
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver({.lr = 0.01, .momentum = 0.5}, steps);
  const MemoryMeter meter;
  EXPECT_NE(estimate(estimator, problem, solver, x).grade, Grade::kBad);
  return static_cast<double>(meter.peak_bytes());
}

TEST(Forward, TakesMemoryThatDoesNotDependOnT) {
  EXPECT_NEAR(peak(Forward(), 300) / peak(Forward(), 20), 1.0, 0.01);
  EXPECT_GT(peak(Unrolled(), 300), 5 * peak(Unrolled(), 20));
  // dx × dy numbers for y and for the momentum, and eight such blocks of workspace at most: what the objection counts with.
  EXPECT_LT(peak(Forward(), 20), 10.5 * 8 * 60 * 60);
}

TEST(Forward, RefusesManyColumnsAndLargeBlocksWithTheirNumbers) {
  const RidgeProblem problem(RidgeOptions{.features = 300});
  const RuleSolver solver = rule_solver({.lr = 0.1}, 3);
  auto objections = Forward().objections(problem, solver);
  ASSERT_EQ(objections.size(), 1u);
  EXPECT_THAT(objections[0], HasSubstr("x has 300 of them, more than max_columns = 256"));
  EXPECT_THAT(objections[0], HasSubstr("unrolled"));
  EXPECT_TRUE(Forward({.max_columns = 300}).objections(problem, solver).empty());
  objections = Forward({.max_columns = 300, .budget = 100'000}).objections(problem, solver);
  ASSERT_EQ(objections.size(), 1u);
  EXPECT_THAT(objections[0], HasSubstr("300 × 300"));
  EXPECT_EQ(Forward().objections(problem, Lbfgs({})).size(), 1u);
  EXPECT_THROW(Forward({.max_columns = 0}), Error);
}

TEST(Forward, GradesADivergedOrNonFiniteSolveBad) {
  const QuadraticProblem problem;
  EXPECT_EQ(estimate(Forward(), problem, rule_solver({.lr = 30.0}, 40), problem.initial_outer()).grade, Grade::kBad);
  const at::Tensor nan = at::full_like(problem.initial_outer(), std::numeric_limits<double>::quiet_NaN());
  EXPECT_EQ(estimate(Forward(), problem, rule_solver({.lr = 0.1}, 3), nan).grade, Grade::kBad);
}

}  // namespace
}  // namespace bilevel::forward_test
