#include "bilevel/hypergrad/implicit.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/dense.h"
#include "bilevel/linear/neumann.h"
#include "bilevel/linear/sgd.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::implicit_test {
namespace {

using namespace testing;
using ::testing::Contains;
using ::testing::HasSubstr;

PlainRule plain(double lr) {
  PlainRule rule;
  rule.lr = lr;
  return rule;
}

Implicit dense(ImplicitOptions options = {}, double damping = 0.0) {
  return Implicit(std::make_unique<Dense>(DenseOptions{.damping = damping}), options);
}
Implicit cg(int64_t iterations, ImplicitOptions options = {}, double damping = 0.0) {
  return Implicit(std::make_unique<Cg>(CgOptions{.iterations = iterations, .tolerance = 1e-13, .damping = damping}), options);
}
Implicit neumann(int64_t iterations, double scale = 0.0) {
  return Implicit(std::make_unique<Neumann>(NeumannOptions{.iterations = iterations, .scale = scale}));
}

// ∂x f − Gᵀ (H + shift)⁻¹ ∂y f with everything formed by plain autograd.
at::Tensor formula(const Problem& problem, const at::Tensor& x, const at::Tensor& y, double shift = 0.0) {
  const at::Tensor H = hessian(problem, x, y) + shift * at::eye(y.size(0), y.options());
  return outer_grad_x(problem, x, y) - cross(problem, x, y).t().mv(at::linalg_solve(H, outer_grad_y(problem, x, y)));
}

TEST(Implicit, IsTheClosedFormOfTheQuadraticForEverySolverAndCondition) {
  for (const double condition : {10.0, 100.0, 1e4}) {
    const QuadraticProblem problem({.condition = condition});
    const at::Tensor x = problem.initial_outer(), expected = problem.hypergradient(x);
    const RuleSolver solver = rule_solver(plain(1.0), 0);
    const Extras solved{.y = problem.solution(x)};
    for (const Implicit& estimator : {dense(), cg(40)}) {
      const Hypergradient h = estimate(estimator, problem, solver, x, solved);
      EXPECT_LT(relative_error(h.value, expected), 1e-8) << condition;
      EXPECT_LT(relative_error(h.q, at::linalg_solve(problem.A(), outer_grad_y(problem, x, solved.y))), 1e-8);
      EXPECT_EQ(h.grade, Grade::kOk) << h.message;
      // The direct term is as large as the implicit part, so neither alone would do.
      EXPECT_GT(relative_error(h.direct, expected), 0.3);
      EXPECT_GT(relative_error(h.value - h.direct, expected), 0.3);
    }
  }
}

TEST(Implicit, NeumannTakesTheInnerStepSizeAndTendsToTheClosedForm) {
  const QuadraticProblem problem({.condition = 10.0});
  const at::Tensor x = problem.initial_outer();
  const Extras solved{.y = problem.solution(x)};
  const at::Tensor with_inner = estimate(neumann(25), problem, rule_solver(plain(0.7), 0), x, solved).value;
  const at::Tensor with_scale = estimate(neumann(25, 0.7), problem, rule_solver(plain(0.1), 0), x, solved).value;
  EXPECT_LT(relative_error(with_inner, with_scale), 1e-13);
  EXPECT_GT(relative_error(with_inner, estimate(neumann(25), problem, rule_solver(plain(0.1), 0), x, solved).value), 0.01);
  EXPECT_LT(
      relative_error(estimate(neumann(400), problem, rule_solver(plain(0.7), 0), x, solved).value, problem.hypergradient(x)),
      1e-10);
}

TEST(Implicit, IsTheClosedFormOfRidgeAndOfSampleWeights) {
  const RidgeProblem ridge;
  const at::Tensor xr = ridge.initial_outer();
  const Hypergradient hr = estimate(cg(30), ridge, rule_solver(plain(0.1), 0), xr, {.y = ridge.solution(xr)});
  EXPECT_LT(relative_error(hr.value, ridge.hypergradient(xr)), 1e-10);

  const LogisticWeightsProblem weights;
  const at::Tensor xw = weights.initial_outer(), y = weights.solution(xw);
  const Hypergradient hw = estimate(cg(30), weights, rule_solver(plain(0.1), 0), xw, {.y = y});
  EXPECT_LT(relative_error(hw.value, weights.hypergradient(xw, y)), 1e-10);
  EXPECT_GT(relative_error(hw.direct, hw.value), 0.1);
}

TEST(Implicit, EqualsDifferencesOfTheLossAtTheOptimum) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer();
  const auto F = [&](const at::Tensor& at_x) { return problem.outer_loss(at_x, problem.solution(at_x), Batch{}).item<double>(); };
  const Hypergradient h = estimate(cg(30), problem, Lbfgs({.tolerance = 1e-11}), x);
  EXPECT_LT(relative_error(h.value, differences(F, x)), 1e-5);
  EXPECT_EQ(h.certificate.differentiates, "F");
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
}

TEST(Implicit, DifferentiatesTheOptimumThatACoupledWeightDecayMoves) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  PlainRule rule = plain(0.3);
  rule.weight_decay = 0.2;
  const RuleSolver solver = rule_solver(rule, 4000);
  const Hypergradient h = estimate(dense(), problem, solver, x);
  const at::Tensor y = unrolled_end(problem, x, rule, 4000);
  EXPECT_LT(h.certificate.stationarity, 1e-9);
  EXPECT_LT(relative_error(h.value, formula(problem, x, y, 0.2)), 1e-6);
  EXPECT_GT(relative_error(h.value, formula(problem, x, y)), 0.01);
}

TEST(Implicit, DampingIsInTheSolveOnlyWhereverItComesFrom) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x);
  const RuleSolver solver = rule_solver(plain(0.1), 0);
  const at::Tensor expected = formula(problem, x, y, 0.05);
  EXPECT_GT(relative_error(expected, formula(problem, x, y)), 0.01);
  EXPECT_LT(relative_error(estimate(cg(30, {}, 0.05), problem, solver, x, {.y = y}).value, expected), 1e-9);
  EXPECT_LT(relative_error(estimate(cg(30), problem, solver, x, {.y = y, .damping = 0.05}).value, expected), 1e-9);
  EXPECT_LT(relative_error(estimate(cg(30, {}, 0.02), problem, solver, x, {.y = y, .damping = 0.03}).value, expected), 1e-9);
}

TEST(Implicit, GaussNewtonIsTheHessianWhereOutputsAreLinearAndServesWhereTheHessianIsIndefinite) {
  const RidgeProblem ridge;
  const at::Tensor xr = ridge.initial_outer();
  const Hypergradient linear =
      estimate(cg(30, {.gauss_newton = true}), ridge, rule_solver(plain(0.1), 0), xr, {.y = ridge.solution(xr)});
  EXPECT_LT(relative_error(linear.value, ridge.hypergradient(xr)), 1e-10);

  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver(plain(0.1), 0);
  const at::Tensor eigenvalues = at::linalg_eigvalsh(hessian(problem, x, problem.initial_inner(x, 0)));
  ASSERT_LT(eigenvalues.min().item<double>(), -0.01);
  const Hypergradient indefinite = estimate(cg(60), problem, solver, x);
  EXPECT_EQ(indefinite.grade, Grade::kBad);
  EXPECT_THAT(indefinite.message, HasSubstr("damping"));
  EXPECT_THAT(indefinite.message, HasSubstr("gauss-newton"));
  EXPECT_NE(estimate(cg(60, {.gauss_newton = true}), problem, solver, x).grade, Grade::kBad);
  EXPECT_NE(estimate(cg(60, {}, -2 * eigenvalues.min().item<double>()), problem, solver, x).grade, Grade::kBad);
}

TEST(Implicit, WarnsOfAPoorLinearSolveAndOfAnInnerSolveFarFromDone) {
  const QuadraticProblem problem({.condition = 1e4});
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver(plain(1.0), 0);
  const Hypergradient poor = estimate(cg(1), problem, solver, x, {.y = problem.solution(x)});
  EXPECT_EQ(poor.grade, Grade::kWarn);
  EXPECT_THAT(poor.message, HasSubstr("relative residual"));
  EXPECT_GT(poor.certificate.relative_residual.value(), 1e-2);

  const Hypergradient far = estimate(dense(), problem, rule_solver(plain(1.0), 2), x);
  EXPECT_EQ(far.grade, Grade::kWarn);
  EXPECT_THAT(far.message, HasSubstr("stationary"));
  // A warm start is measured against the cold one.
  const at::Tensor near = problem.solution(x) + 1e-4;
  EXPECT_EQ(estimate(dense(), problem, solver, x, {.y = near}).grade, Grade::kOk);
  EXPECT_EQ(estimate(dense(), problem, solver, x, {.y = problem.initial_inner(x, 0)}).grade, Grade::kWarn);
}

TEST(Implicit, StartsTheLinearSolveFromQ0) {
  const QuadraticProblem problem({.condition = 1e3});
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = rule_solver(plain(1.0), 0);
  const at::Tensor y = problem.solution(x);
  const at::Tensor q = estimate(dense(), problem, solver, x, {.y = y}).q;
  const double cold = relative_error(estimate(cg(2), problem, solver, x, {.y = y}).value, problem.hypergradient(x));
  const double warm = relative_error(estimate(cg(2), problem, solver, x, {.y = y, .q0 = q}).value, problem.hypergradient(x));
  EXPECT_GT(cold, 1e-3);
  EXPECT_LT(warm, 1e-9);
}

TEST(Implicit, RefusesWhatItWouldGetWrong) {
  const QuadraticProblem quadratic;
  const MlpProblem mlp;
  const RuleSolver sgd = rule_solver(plain(0.1), 5);
  EXPECT_TRUE(cg(5).objections(quadratic, sgd).empty());
  EXPECT_TRUE(cg(5, {.gauss_newton = true}).objections(mlp, sgd).empty());
  EXPECT_THAT(cg(5, {.gauss_newton = true}).objections(quadratic, sgd), Contains(HasSubstr("gauss-newton")));

  AdamRuleOptions adamw = AdamRuleOptions::adamw();
  const auto solver = [&] { return RuleSolver(std::make_unique<AdamRule>(adamw), {.lr = 0.1, .steps = 5}); };
  EXPECT_TRUE(cg(5).objections(quadratic, solver()).empty());
  adamw.amsgrad = true;  // where it rests depends on the way there
  EXPECT_THAT(cg(5).objections(quadratic, solver()), Contains(HasSubstr("adamw")));
  adamw.decoupled = false;
  EXPECT_TRUE(cg(5).objections(quadratic, solver()).empty());

  const LearnedRuleProblem learned(mlp, 0.1);
  PlainRule with_lr;
  with_lr.learned_lr = true;
  EXPECT_THAT(cg(5).objections(learned, rule_solver(with_lr, 5)), ::testing::ElementsAre(HasSubstr("\"lr\"")));
  EXPECT_THAT(cg(5).objections(SinusoidMamlProblem(), sgd), Contains(HasSubstr("starting point")));
  EXPECT_TRUE(cg(5).objections(SinusoidMamlProblem({.proximity = 2.0}), sgd).empty());
}

// `sgd` on 5 of the 30 samples at a time tends to the answer of all of them; one matrix of 5 samples is another matrix.
TEST(Implicit, SolvesByFreshBatchesWhereTheSolverIsSgd) {
  const RidgeProblem problem;
  const at::Tensor x = problem.initial_outer() - 1, y = problem.solution(x), expected = problem.hypergradient(x);
  const AutodiffOracle oracle(problem);
  const RuleSolver solver = rule_solver(plain(0.1), 0);
  const auto with = [&](const Implicit& estimator) {
    InnerSolution solution = solver.solve(oracle, x, 0, {y}, {});
    EstimatorInput in{oracle, solver, x, solution, {}, {}, {}};
    in.hvp_batch = Batch{};
    in.hvp_batch->samples = at::arange(5, at::kLong);
    return estimator.estimate(in).value;
  };
  const at::Tensor fresh = with(Implicit(std::make_unique<SgdSolver>(SgdSolverOptions{.iterations = 3000, .scale = 0.02})));
  EXPECT_LT(relative_error(fresh, expected), 0.05);
  EXPECT_GT(relative_error(with(cg(30)), expected), 0.2);
}

TEST(Implicit, GradesNonFiniteNumbersBad) {
  const QuadraticProblem problem;
  const at::Tensor nan = at::full_like(problem.initial_outer(), std::numeric_limits<double>::quiet_NaN());
  for (const Implicit& estimator : {dense(), cg(5)}) {
    EXPECT_EQ(estimate(estimator, problem, rule_solver(plain(0.1), 3), nan).grade, Grade::kBad);
  }
  EXPECT_EQ(estimate(neumann(60, 100.0), problem, rule_solver(plain(1.0), 40), problem.initial_outer()).grade, Grade::kBad);
}

TEST(Implicit, WorksInSinglePrecision) {
  const QuadraticProblem problem({.dtype = at::kFloat}), reference;
  const at::Tensor x = problem.initial_outer();
  const Hypergradient h = estimate(cg(20), problem, rule_solver(plain(1.0), 100), x);
  EXPECT_EQ(h.value.scalar_type(), at::kFloat);
  EXPECT_LT(relative_error(h.value.to(at::kDouble), reference.hypergradient(x.to(at::kDouble))), 1e-4);
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
}

}  // namespace
}  // namespace bilevel::implicit_test
