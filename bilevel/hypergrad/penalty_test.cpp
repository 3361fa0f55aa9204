#include "bilevel/hypergrad/penalty.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::penalty_test {
namespace {

using namespace testing;
using ::testing::HasSubstr;

/// After `steps` inner steps.
Hypergradient after(const Penalty& penalty, const Problem& problem, int64_t steps, double lr = 0.5) {
  return estimate(penalty, problem, rule_solver({.lr = lr}, steps), problem.initial_outer());
}

TEST(Penalty, ComesToTheDerivativeWithTheOrderOfItsDifference) {
  const RidgeProblem problem;
  const at::Tensor expected = problem.hypergradient(problem.initial_outer());
  for (const bool central : {false, true}) {
    std::vector<double> errors;
    for (const double lambda : {10.0, 20.0, 40.0}) {
      const Penalty penalty({.lambda = lambda, .steps = 400, .central = central});
      errors.push_back(relative_error(after(penalty, problem, 400, 0.3).value, expected));
    }
    const double factor = central ? 4 : 2;
    EXPECT_NEAR(errors[0] / errors[1], factor, 0.2 * factor);
    EXPECT_NEAR(errors[1] / errors[2], factor, 0.1 * factor);
  }
  const Penalty sharp({.lambda = 1e4, .steps = 400});
  EXPECT_LT(relative_error(after(sharp, problem, 400, 0.3).value, expected), 1e-6);
}

// Where both losses are quadratic, z± = y ∓ σ (A ± σ I)⁻¹ ∂y f(y).
TEST(Penalty, IsItsClosedFormOnAQuadratic) {
  const QuadraticProblem problem;
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x), b = outer_grad_y(problem, x, y);
  const at::Tensor I = at::eye(y.size(0), at::kDouble);
  const double sigma = 0.05;
  const auto move = [&](double s) { return -s * at::linalg_solve(problem.A() + s * I, b); };
  for (const bool central : {false, true}) {
    const at::Tensor minus = central ? move(-sigma) : at::zeros_like(y);
    const at::Tensor expected =
        outer_grad_x(problem, x, y) - problem.B().t().mv(move(sigma) - minus) / (central ? 2 * sigma : sigma);
    const Hypergradient h = after(Penalty({.lambda = 1 / sigma, .steps = 800, .central = central}), problem, 800, 1.0);
    EXPECT_LT(relative_error(h.value, expected), 1e-9);
    EXPECT_GT(relative_error(problem.hypergradient(x), expected), 1e-3);
    EXPECT_GT(relative_error(h.direct, expected), 0.1);
  }
}

// Both ways begin at the same y, short of y*: what it has left to go is no part of the difference.
TEST(Penalty, WhatTheInnerSolveHasLeftDropsOut) {
  const QuadraticProblem problem({.condition = 5});
  const at::Tensor expected = problem.hypergradient(problem.initial_outer());
  const Penalty penalty({.lambda = 1e3, .steps = 200});
  EXPECT_LT(relative_error(after(penalty, problem, 3).value, expected), 1e-3);
}

TEST(Penalty, TakesFirstDerivativesAlone) {
  const MlpProblem problem;
  const AutodiffOracle plain(problem);
  CountedOracle oracle(plain);
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver({.lr = 0.1}, 5);
  InnerSolution solution = solver.solve(oracle, x, 0, {.y = problem.initial_inner(x, 0)}, {});
  const Cost before = oracle.cost();
  EstimatorInput input{oracle, solver, x, solution, {}, {}, {}};
  Penalty({.steps = 6}).estimate(input);
  const Cost cost = oracle.cost() - before;
  EXPECT_EQ(cost.hvps, 0);
  EXPECT_EQ(cost.cross_products, 0);
}

TEST(Penalty, SaysWhatItIsAndRefusesWhatItCannotDo) {
  const Hypergradient h = after(Penalty(), RidgeProblem(), 50);
  EXPECT_EQ(h.certificate.differentiates, "F");
  EXPECT_THAT(h.certificate.bias, HasSubstr("penalty"));
  EXPECT_FALSE(h.certificate.error_bound);
  EXPECT_THROW(Penalty({.lambda = 0}), Error);
  EXPECT_THROW(Penalty({.steps = 0}), Error);
  const RidgeProblem base;
  EXPECT_THAT(Penalty().objections(LearnedRuleProblem(base, 0.1), rule_solver({.learned_lr = true}, 5)),
              ::testing::ElementsAre(HasSubstr("lr")));
}

}  // namespace
}  // namespace bilevel::penalty_test
