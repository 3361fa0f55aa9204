#include "bilevel/inner/schedule.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/test_problems.h"

// Trajectories under each schedule are compared with PyTorch's in torch_optim_test.cpp.

namespace bilevel {
namespace {

using Kind = ScheduleOptions::Kind;

double lr_of(const ScheduleOptions& schedule, double lr, int64_t t, int64_t steps) {
  const ScheduledLr by = scheduled_lr(schedule, t, steps);
  return by.scale * lr + by.offset;
}

TEST(Schedule, CoversAllStepsOfASolveUnlessToldOtherwise) {
  const ScheduleOptions cosine{.kind = Kind::kCosine, .eta_min = 0.2};
  EXPECT_DOUBLE_EQ(lr_of(cosine, 1.0, 0, 40), 1.0);
  EXPECT_DOUBLE_EQ(lr_of(cosine, 1.0, 20, 40), 0.6);
  EXPECT_DOUBLE_EQ(lr_of(cosine, 1.0, 40, 40), 0.2);
  const ScheduleOptions warm{.kind = Kind::kWarmupCosine, .start_factor = 0.5, .total_iters = 10};
  EXPECT_DOUBLE_EQ(lr_of(warm, 2.0, 0, 50), 1.0);
  EXPECT_DOUBLE_EQ(lr_of(warm, 2.0, 5, 50), 1.5);
  EXPECT_DOUBLE_EQ(lr_of(warm, 2.0, 10, 50), 2.0);
  EXPECT_DOUBLE_EQ(lr_of(warm, 2.0, 30, 50), 1.0);
  EXPECT_EQ(lr_of({}, 0.3, 17, 50), 0.3);
}

TEST(Schedule, ComposesWithAnLrThatXDetermines) {
  const QuadraticProblem base;
  const LearnedRuleProblem problem(base, 0.5);  // lr/(1 + t/10)
  const at::Tensor x = problem.initial_outer();
  const AutodiffOracle oracle(problem);
  RuleSolverOptions options{.lr = 0.1, .steps = 10};
  options.schedule = {.kind = Kind::kCosine, .eta_min = 0.05};
  const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{}), options);
  const SolveContext context{oracle, x, 0, 0, {at::scalar_tensor(0.1, at::kDouble), at::zeros({}, at::kDouble)}};
  const int64_t t = 5;
  const double free = 0.5 / 1.5;
  EXPECT_NEAR(solver.hyperparameters(context, t)[0].item<double>(), 0.05 + (free - 0.05) * 0.5, 1e-15);
  // ∂lr_t/∂x = ½ · 1/1.5 in its element.
  const Tensors h_bar{at::scalar_tensor(3.0, at::kDouble), at::zeros({}, at::kDouble)};
  const at::Tensor x_bar = solver.hyperparameters_vjp(problem, x, t, h_bar);
  EXPECT_NEAR(x_bar[-1].item<double>(), 3.0 * 0.5 / 1.5, 1e-14);
  EXPECT_EQ(x_bar.narrow(0, 0, x.size(0) - 1).abs().max().item<double>(), 0.0);
  EXPECT_NEAR(solver.hyperparameters_jvp(context, t, at::ones_like(x))[0].item<double>(), 0.5 / 1.5, 1e-14);
  EXPECT_NEAR(solver.step_size(problem, x).item<double>(), lr_of(options.schedule, 0.5 / 1.9, 9, 10), 1e-15);
}

TEST(Schedule, RefusesOptionsThatMakeNoSense) {
  EXPECT_EQ((ScheduleOptions{.eta_min = -1, .start_factor = 0, .total_iters = -1, .step_size = 0}).violations().size(), 4u);
}

}  // namespace
}  // namespace bilevel
