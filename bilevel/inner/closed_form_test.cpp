#include "bilevel/inner/closed_form.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/function_problem.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::closed_form_test {
namespace {

using testing::HasSubstr;

double gap(const at::Tensor& a, const at::Tensor& b) { return (a - b).norm().item<double>() / b.norm().item<double>(); }

InnerSolution solve(const Problem& problem, const ClosedFormOptions& options = {}) {
  const at::Tensor x = problem.initial_outer();
  return ClosedForm(options).solve(AutodiffOracle(problem), x, 0, {problem.initial_inner(x, 0)}, {});
}

TEST(ClosedForm, SolvesRidgeRegressionsToRounding) {
  const RidgeProblem ridge;
  const QuadraticProblem quadratic({.condition = 1e6});
  for (const int64_t max_dim : {2000, 0}) {  // by the matrix, and by its products
    const InnerSolution s = solve(ridge, {.max_dim = max_dim});
    EXPECT_EQ(s.status, Status::kConverged) << s.message;
    EXPECT_LT(gap(s.y, ridge.solution(ridge.initial_outer())), 1e-11);
    EXPECT_NEAR(s.loss, ridge.inner_loss(ridge.initial_outer(), s.y, {}).item<double>(), 1e-13);
    EXPECT_LT(gap(solve(quadratic, {.max_dim = max_dim}).y, quadratic.solution(quadratic.initial_outer())), 1e-8);
  }
  const RidgeProblem single({.dtype = at::kFloat});
  const InnerSolution f = solve(single);
  EXPECT_EQ(f.status, Status::kConverged) << f.message;
  EXPECT_EQ(f.y.scalar_type(), at::kFloat);
  EXPECT_LT(gap(f.y.to(at::kDouble), ridge.solution(ridge.initial_outer())), 1e-4);
}

TEST(ClosedForm, RefusesALossThatIsNotQuadratic) {
  for (const auto& problem : std::initializer_list<std::shared_ptr<Problem>>{std::make_shared<LogisticWeightsProblem>(),
                                                                             std::make_shared<MlpProblem>()}) {
    try {
      solve(*problem);
      ADD_FAILURE() << "not refused";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("not quadratic"));
    }
  }
}

TEST(ClosedForm, CallsALossWithoutASingleMinimumIndefinite) {
  const auto loss = [](const at::Tensor&, const at::Tensor& y) { return 0.5 * y[0] * y[0] - 0.5 * y[1] * y[1] + y.sum(); };
  const FunctionProblem saddle(
      {.inner_loss = loss, .outer_loss = loss, .x0 = at::zeros({1}, at::kDouble), .y0 = at::zeros({2}, at::kDouble)});
  for (const int64_t max_dim : {2000, 0}) EXPECT_EQ(solve(saddle, {.max_dim = max_dim}).status, Status::kIndefinite);
}

}  // namespace
}  // namespace bilevel::closed_form_test
