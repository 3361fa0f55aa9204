#include "bilevel/inner/anderson.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/function_problem.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::anderson_test {
namespace {

at::Tensor drawn(const char* purpose, at::IntArrayRef sizes) { return Stream(17, purpose).at(0).normal(sizes); }
double relative_error(const at::Tensor& a, const at::Tensor& b) { return ((a - b).norm() / b.norm()).item<double>(); }

FunctionProblem of(FunctionProblemOptions::Loss map, int64_t dy, at::ScalarType dtype = at::kDouble) {
  return FunctionProblem({.outer_loss = [](const at::Tensor&, const at::Tensor& y) { return y.sum(); },
                          .x0 = at::ones({1}, dtype),
                          .y0 = at::zeros({dy}, dtype),
                          .optimality_map = std::move(map)});
}

InnerSolution solve(const Problem& problem, AndersonOptions options) {
  const at::Tensor x = problem.initial_outer();
  return Anderson(options).solve(AutodiffOracle(problem), x, 0, {problem.initial_inner(x, 0)}, {});
}

// Neither a contraction nor symmetric: four quarter turns, stretched by 2.5, which the plain iteration follows round and round.
TEST(Anderson, FindsAFixedPointThatRepelsThePlainIteration) {
  const at::Tensor turn = at::tensor({0.0, -1.0, 1.0, 0.0}, at::kDouble).reshape({2, 2});
  const at::Tensor W = 2.5 * at::block_diag({turn, turn, turn, turn}), b = 0.2 * drawn("b", {8});
  const FunctionProblem problem =
      of([W, b](const at::Tensor& x, const at::Tensor& y) { return y - at::tanh(W.mv(y) + b) * x; }, 8);
  const InnerSolution solution = solve(problem, {.tolerance = 1e-12});
  EXPECT_EQ(solution.status, Status::kConverged) << solution.message;
  EXPECT_LT((solution.y - at::tanh(W.mv(solution.y) + b)).norm().item<double>(), 2e-12);
  at::Tensor y = at::zeros({8}, at::kDouble);
  for (int i = 0; i < 200; ++i) y = at::tanh(W.mv(y) + b);
  EXPECT_GT((y - at::tanh(W.mv(y) + b)).norm().item<double>(), 0.1);
}

// The KKT system of an equality-constrained quadratic, indefinite: with as many differences as unknowns it is solved like by
// GMRES.
TEST(Anderson, SolvesASaddlePoint) {
  const at::Tensor A = drawn("A", {5, 5}), E = drawn("E", {2, 5}), right = drawn("right", {7});
  const at::Tensor K =
      at::cat({at::cat({A.mm(A.t()) + at::eye(5, at::kDouble), E.t()}, 1), at::cat({E, at::zeros({2, 2}, at::kDouble)}, 1)});
  const FunctionProblem problem = of([=](const at::Tensor& x, const at::Tensor& y) { return K.mv(y) - right * x; }, 7);
  const InnerSolution solution = solve(problem, {.lr = 0.1, .tolerance = 1e-9, .history = 7});
  EXPECT_EQ(solution.status, Status::kConverged) << solution.message;
  EXPECT_LT(solution.steps, 60);
  EXPECT_LT(relative_error(solution.y, at::linalg_solve(K, right)), 1e-7);
}

TEST(Anderson, MinimisesALossInFarFewerStepsThanDescent) {
  const QuadraticProblem problem({.condition = 1e3});
  const InnerSolution solution = solve(problem, {.steps = 60, .tolerance = 1e-10});
  EXPECT_EQ(solution.status, Status::kConverged) << solution.message;
  EXPECT_LT(relative_error(solution.y, problem.solution(problem.initial_outer())), 1e-6);
}

TEST(Anderson, WorksInSinglePrecisionAndReturnsTheBestOfWhatItSaw) {
  const at::Tensor W = (0.3 * drawn("W", {6, 6})).to(at::kFloat), b = drawn("b6", {6}).to(at::kFloat);
  const FunctionProblem problem =
      of([=](const at::Tensor& x, const at::Tensor& y) { return y - at::tanh(W.mv(y) + b) * x; }, 6, at::kFloat);
  EXPECT_EQ(solve(problem, {.tolerance = 1e-5}).status, Status::kConverged);
  const InnerSolution stuck = solve(problem, {.tolerance = 1e-30});
  EXPECT_FALSE(failed(stuck.status)) << stuck.message;
  EXPECT_LT(stuck.stationarity, 1e-5);
}

TEST(Anderson, RefusesOptionsThatMakeNoSenseAndConstraints) {
  EXPECT_THROW(Anderson({.lr = 0.0}), Error);
  EXPECT_THROW(Anderson({.history = 0}), Error);
  const FunctionProblem bounded(
      {.inner_loss = [](const at::Tensor&, const at::Tensor& y) { return y.sum(); },
       .outer_loss = [](const at::Tensor&, const at::Tensor& y) { return y.sum(); },
       .x0 = at::ones({1}, at::kDouble),
       .y0 = at::ones({1}, at::kDouble),
       .inner_constraints = [](const at::Tensor&) { return InnerConstraints{.lower = at::zeros({}, at::kDouble)}; }});
  EXPECT_THROW(solve(bounded, {}), Error);
}

}  // namespace
}  // namespace bilevel::anderson_test
