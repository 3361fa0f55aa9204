#include "bilevel/inner/newton_cg.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/function_problem.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::newton_cg_test {
namespace {

double gap(const at::Tensor& a, const at::Tensor& b) { return (a - b).norm().item<double>() / b.norm().item<double>(); }

TEST(NewtonCg, FindsTheSolutionsThatAreKnownOtherwise) {
  const NewtonCg solver({.tolerance = 1e-11});
  const QuadraticProblem quadratic({.condition = 1e3});
  const RidgeProblem ridge;
  const LogisticWeightsProblem logistic;
  const auto solve = [&](const Problem& problem) {
    const at::Tensor x = problem.initial_outer();
    const InnerSolution s = solver.solve(AutodiffOracle(problem), x, 0, {problem.initial_inner(x, 0)}, {});
    EXPECT_EQ(s.status, Status::kConverged) << s.message;
    EXPECT_EQ(s.stationarity, AutodiffOracle(problem).inner(x, s.y, {}).y.norm().item<double>());
    return s.y;
  };
  EXPECT_LT(gap(solve(quadratic), quadratic.solution(quadratic.initial_outer())), 1e-7);
  EXPECT_LT(gap(solve(ridge), ridge.solution(ridge.initial_outer())), 1e-10);
  EXPECT_LT(gap(solve(logistic), logistic.solution(logistic.initial_outer())), 1e-9);
}

TEST(NewtonCg, ConvergesSuperlinearly) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer();
  const AutodiffOracle oracle(problem);
  std::vector<double> norms;
  for (int64_t steps = 0; steps < 12; ++steps) {
    norms.push_back(NewtonCg({.max_iterations = steps, .tolerance = 1e-14})
                        .solve(oracle, x, 0, {problem.initial_inner(x, 0)}, {})
                        .stationarity);
  }
  // The ratio of one norm to the one before it goes to zero.
  size_t last = 1;
  while (last + 1 < norms.size() && norms[last + 1] > 1e-13) ++last;
  EXPECT_LT(norms[last] / norms[last - 1], 0.2 * norms[1] / norms[0]);
  EXPECT_LE(last, 9u);
}

TEST(NewtonCg, DescendsThroughNegativeCurvatureToAMinimum) {
  // ¼ Σ (y² − 1)², whose Hessian is −1 near 0 and 2 at the minima ±1; and a network.
  const auto loss = [](const at::Tensor&, const at::Tensor& y) { return 0.25 * (y.square() - 1).square().sum(); };
  const FunctionProblem wells({.inner_loss = loss,
                               .outer_loss = loss,
                               .x0 = at::zeros({1}, at::kDouble),
                               .y0 = at::tensor({0.05, -0.1, 0.02}, at::kDouble)});
  const at::Tensor x = wells.initial_outer();
  const InnerSolution s = NewtonCg({.tolerance = 1e-12}).solve(AutodiffOracle(wells), x, 0, {wells.initial_inner(x, 0)}, {});
  EXPECT_EQ(s.status, Status::kConverged) << s.message;
  EXPECT_LT((s.y - at::tensor({1.0, -1.0, 1.0}, at::kDouble)).norm().item<double>(), 1e-10);

  const MlpProblem mlp;
  const at::Tensor mx = mlp.initial_outer(), y0 = mlp.initial_inner(mx, 0);
  const AutodiffOracle oracle(mlp);
  const InnerSolution m = NewtonCg({.max_iterations = 300, .tolerance = 1e-9}).solve(oracle, mx, 0, {y0}, {});
  EXPECT_EQ(m.status, Status::kConverged) << m.message;
  EXPECT_LT(m.loss, oracle.inner_value(mx, y0, {}).item<double>());
}

TEST(NewtonCg, NeedsFewGradientsWhereGradientDescentNeedsMany) {
  const QuadraticProblem problem({.condition = 1e4});
  const at::Tensor x = problem.initial_outer();
  const AutodiffOracle autodiff(problem);
  const CountedOracle oracle(autodiff);
  NewtonCg({.tolerance = 1e-10}).solve(oracle, x, 0, {problem.initial_inner(x, 0)}, {});
  EXPECT_LT(oracle.cost().gradients, 40);
}

TEST(NewtonCg, SaysWhenItRanOutOfIterationsAndWhenTheLossIsNotFinite) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer(), y0 = problem.initial_inner(x, 0);
  const AutodiffOracle oracle(problem);
  EXPECT_EQ(NewtonCg({.max_iterations = 1, .tolerance = 1e-12}).solve(oracle, x, 0, {y0}, {}).status, Status::kIterationLimit);
  EXPECT_EQ(NewtonCg({}).solve(oracle, x, 0, {at::full_like(y0, NAN)}, {}).status, Status::kNonFinite);
  EXPECT_THROW(NewtonCg({}).solve(oracle, x, 0, {y0}, {.keep = true}), Error);
  EXPECT_THROW(NewtonCg({}).step_size(problem, x), Error);
  EXPECT_THROW(NewtonCg({.tolerance = 0}), Error);
}

}  // namespace
}  // namespace bilevel::newton_cg_test
