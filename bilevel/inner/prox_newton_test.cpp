#include "bilevel/inner/prox_newton.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/constrained_for_tests.h"
#include "bilevel/inner/proximal_gradient.h"
#include "bilevel/inner/registry.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::prox_newton_test {
namespace {

using testing::HasSubstr;

InnerSolution solve(const Problem& problem, ProxNewtonOptions options = {}) {
  const at::Tensor x = problem.initial_outer();
  return ProxNewton(options).solve(AutodiffOracle(problem), x, 0, {problem.initial_inner(x, 0)}, {});
}

double gap(const at::Tensor& a, const at::Tensor& b) { return (a - b).norm().item<double>() / b.norm().item<double>(); }
at::Tensor number(double value) { return at::scalar_tensor(value, at::kDouble); }

double half_the_largest_slope(const Problem& base, int64_t d) {
  return 0.5 * AutodiffOracle(base).inner(base.initial_outer(), at::zeros({d}, at::kDouble), {}).y.abs().max().item<double>();
}

TEST(ProxNewton, SatisfiesTheConditionsOfTheLassoWithZerosThatAreZeros) {
  const RidgeProblem base({.features = 12});
  const double lambda = half_the_largest_slope(base, 12);
  const InnerSolution s = solve(Constrained(base, {.l1 = number(lambda)}), {.tolerance = 1e-11});
  expect_lasso_conditions(base, lambda, s, 1e-10);
}

TEST(ProxNewton, FindsTheConstrainedMinimumOfAQuadraticAndMeetsItsBoundsToTheBit) {
  const QuadraticProblem base;
  const at::Tensor free = base.solution(base.initial_outer());
  const double top = 0.5 * free.max().item<double>();
  const InnerSolution s = solve(Constrained(base, {.lower = number(0), .upper = number(top)}), {.tolerance = 1e-11});
  expect_box_conditions(base, top, s, 1e-10);
  EXPECT_GT(gap(s.y, free.clamp(0, top)), 1e-3);
}

TEST(ProxNewton, TakesAFractionOfTheStepsOfFistaToTheSamePoint) {
  const QuadraticProblem base({.condition = 1e4});
  for (const InnerConstraints& constraints : {InnerConstraints{.lower = number(0)}, InnerConstraints{.l1 = number(0.05)}}) {
    const Constrained problem(base, constraints);
    const InnerSolution newton = solve(problem, {.tolerance = 1e-10});
    const at::Tensor x = problem.initial_outer();
    const InnerSolution fista = ProximalGradient({.max_iterations = 100000, .tolerance = 1e-10})
                                    .solve(AutodiffOracle(problem), x, 0, {problem.initial_inner(x, 0)}, {});
    EXPECT_EQ(newton.status, Status::kConverged) << newton.message;
    EXPECT_EQ(fista.status, Status::kConverged) << fista.message;
    EXPECT_LT(gap(newton.y, fista.y), 1e-6);
    EXPECT_TRUE(newton.y.eq(0).equal(fista.y.eq(0)));
    EXPECT_LT(10 * newton.steps, fista.steps);
  }
}

TEST(ProxNewton, IsNewtonsMethodWithoutConstraintsAndDescendsNonconvexLosses) {
  const RidgeProblem ridge;
  EXPECT_LT(gap(solve(ridge, {.tolerance = 1e-11}).y, ridge.solution(ridge.initial_outer())), 1e-10);
  const MlpProblem base;
  const Constrained problem(base, {.lower = number(-0.4), .upper = number(0.4)});
  const InnerSolution s = solve(problem, {.max_iterations = 500, .tolerance = 1e-7});
  EXPECT_EQ(s.status, Status::kConverged) << s.message;
  EXPECT_LE(s.y.abs().max().item<double>(), 0.4);
  const at::Tensor x = base.initial_outer();
  EXPECT_LT(s.loss, base.inner_loss(x, problem.initial_inner(x, 0).clamp(-0.4, 0.4), {}).item<double>());
}

TEST(ProxNewton, WorksInFloatAndFromTheSolutionTakesNoStep) {
  const RidgeProblem base({.dtype = at::kFloat}), exact;
  const Constrained problem(base, {.l1 = number(0.05)}), reference(exact, {.l1 = number(0.05)});
  const InnerSolution s = solve(problem, {.tolerance = 1e-5}), r = solve(reference, {.tolerance = 1e-10});
  EXPECT_EQ(s.status, Status::kConverged) << s.message;
  EXPECT_EQ(s.y.scalar_type(), at::kFloat);
  EXPECT_LT(gap(s.y.to(at::kDouble), r.y), 1e-3);
  const InnerSolution again =
      ProxNewton({.tolerance = 1e-9}).solve(AutodiffOracle(reference), exact.initial_outer(), 0, {r.y}, {});
  EXPECT_EQ(again.steps, 0);
  EXPECT_TRUE(at::equal(again.y, r.y));
}

TEST(ProxNewton, SaysWhatItDoesNotTakeAndWhenItRanOutOfSteps) {
  const QuadraticProblem base({.condition = 1e4});
  const Constrained equalities(base, {.equality = at::ones({1, 8}, at::kDouble), .equality_rhs = at::ones({1}, at::kDouble)});
  try {
    solve(equalities);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("\"prox\""));
  }
  const InnerSolution s =
      solve(Constrained(base, {.lower = number(0)}), {.max_iterations = 1, .tolerance = 1e-12, .products = 1});
  EXPECT_EQ(s.status, Status::kIterationLimit);
  EXPECT_EQ(s.steps, 1);
  Section section = Config::parse("solver = \"prox-newton\"\ntolerance = 1e-9\nproducts = 7", "c.toml").root();
  EXPECT_EQ(make_inner_solver(section, base, base.initial_outer(), 0, {})->name(), "prox-newton");
  section.finish();
  EXPECT_THROW(ProxNewton({.tolerance = 0}), Error);
}

}  // namespace
}  // namespace bilevel::prox_newton_test
