// A quadratic problem whose optimum is known in closed form: with g = ½ yᵀA y − yᵀ(B x + c) and f = ½‖y − d‖² + ½ρ‖x‖²,
// ∇F = ρ x + BᵀA⁻¹(y* − d) is affine in x, so x* = −(∇F(e₁) − ∇F(0), …)⁻¹ ∇F(0).
#include "bilevel/run/minimize.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <tuple>

#include "bilevel/core/error.h"
#include "bilevel/problem/function_problem.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

at::Tensor optimum(const QuadraticProblem& problem) {
  const int64_t d = problem.outer_layout().size();
  const at::Tensor I = at::eye(d, at::kDouble), at_zero = problem.hypergradient(at::zeros({d}, at::kDouble));
  std::vector<at::Tensor> columns;
  for (int64_t i = 0; i < d; ++i) columns.push_back(problem.hypergradient(I[i]) - at_zero);
  return at::linalg_solve(at::stack(columns, 1), -at_zero);
}

double distance(const at::Tensor& a, const at::Tensor& b) { return ((a - b).norm() / b.norm()).item<double>(); }

MinimizeOptions thorough() {
  MinimizeOptions options;
  options.inner_steps = 60;
  options.steps = 200;
  return options;
}

class MinimizeBy : public testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(MinimizeBy, ReachesTheKnownOptimum) {
  const QuadraticProblem problem;
  MinimizeOptions options = thorough();
  std::tie(options.inner_rule, options.estimator) = GetParam();
  const MinimizeResult result = minimize(problem, options);
  const at::Tensor x = optimum(problem);
  ASSERT_GT(distance(problem.initial_outer(), x), 0.1);  // there was a way to go
  EXPECT_LT(distance(result.x, x), 1e-2) << result.message;
  EXPECT_LT(distance(result.y, problem.solution(x)), 1e-2);
  EXPECT_EQ(result.outcome, Outcome::kDone);
}

INSTANTIATE_TEST_SUITE_P(Parts, MinimizeBy,
                         testing::Values(std::pair{"sgd", "implicit"}, std::pair{"lbfgs", "implicit"},
                                         std::pair{"sgd", "unrolled"}));

TEST(Minimize, WorksInSinglePrecision) {
  QuadraticOptions single;
  single.dtype = at::kFloat;
  const MinimizeResult result = minimize(QuadraticProblem(single), thorough());
  ASSERT_EQ(result.x.scalar_type(), at::kFloat);
  EXPECT_LT(distance(result.x.to(at::kDouble), optimum(QuadraticProblem())), 1e-2) << result.message;
}

TEST(Minimize, BeginsEachInnerSolveAnewWhereItsStartIsLearned) {
  const SinusoidMamlProblem problem;  // y₀ = x: a warm start would be refused
  MinimizeOptions options;
  options.estimator = "unrolled";
  options.inner_steps = 3;
  options.lr = 0.05;
  options.outer_lr = 0.01;
  options.steps = 30;
  const MinimizeResult result = minimize(problem, options);
  EXPECT_EQ(result.y.size(0), 4);  // one adapted network for each task
  EXPECT_LT(result.history.back().outer_loss, 0.9 * result.history.front().outer_loss);
}

TEST(Minimize, GoesByTheEstimatorThatIsNamed) {
  const QuadraticProblem problem;
  MinimizeOptions options = thorough();
  options.estimator = "identity";  // its fixed point is another one
  EXPECT_GT(distance(minimize(problem, options).x, optimum(problem)), 0.1);
}

TEST(Minimize, ReportsOnePointMoreThanUpdatesAndWhatItCost) {
  const QuadraticProblem problem;
  MinimizeOptions options;
  options.steps = 3;
  options.inner_steps = 10;
  options.lr = 0.5;
  const MinimizeResult result = minimize(problem, options);
  ASSERT_EQ(result.history.size(), 4U);
  for (int64_t k = 0; k < 4; ++k) EXPECT_EQ(result.history[static_cast<size_t>(k)].step, k);
  EXPECT_GE(result.cost.gradients, 4 * 10);
  EXPECT_GT(result.cost.hvps, 0);
}

TEST(Minimize, ACallbackEndsTheRun) {
  const QuadraticProblem problem;
  MinimizeOptions options;
  options.callback = [](const Record& record) { return record.step == 2 ? Signal::kStop : Signal::kContinue; };
  const MinimizeResult result = minimize(problem, options);
  EXPECT_EQ(result.outcome, Outcome::kStopped);
  EXPECT_LT(result.history.size(), 6U);
}

TEST(Minimize, KeepsXInsideItsConstraints) {
  // F(x) = ½(x − 3)² by y* = x; the box ends at 1.
  const FunctionProblem problem(
      {.inner_loss = [](const at::Tensor& x, const at::Tensor& y) { return 0.5 * (y - x).square().sum(); },
       .outer_loss = [](const at::Tensor&, const at::Tensor& y) { return 0.5 * (y - 3).square().sum(); },
       .x0 = at::zeros({1}, at::kDouble),
       .y0 = at::zeros({1}, at::kDouble),
       .outer_constraints = {Constraint::box(-1, 1)}});
  EXPECT_EQ(minimize(problem).x.item<double>(), 1.0);
}

TEST(Minimize, RefusesMisuseInWords) {
  const QuadraticProblem problem;
  MinimizeOptions estimator, rule, steps;
  estimator.estimator = "implict";
  EXPECT_THAT([&] { minimize(problem, estimator); }, ThrowsMessage<Error>(HasSubstr("Did you mean \"implicit\"")));
  rule.inner_rule = "adamm";
  EXPECT_THAT([&] { minimize(problem, rule); }, ThrowsMessage<Error>(HasSubstr("adam")));
  steps.steps = -1;
  steps.outer_lr = 0;
  EXPECT_THAT([&] { minimize(problem, steps); },
              ThrowsMessage<Error>(HasSubstr("outer_lr = 0 must be finite and positive; steps = -1")));
}

}  // namespace
}  // namespace bilevel
