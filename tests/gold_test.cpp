// Tests that any engine for hypergradients must pass: real data with a closed form, agreement of the forward with the reverse
// mode, invariants, and an honest meter. The forward mode here is a recursion of its own and shares only the products with the
// engine.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "bilevel/core/stream.h"
#include "bilevel/hypergrad/darts.h"
#include "bilevel/hypergrad/forward.h"
#include "bilevel/hypergrad/identity.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/one_step.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/hypergrad/t1_t2.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/dense.h"
#include "bilevel/linear/neumann.h"
#include "bilevel/linear/registry.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/test_problems.h"
#include "tasks/diabetes.h"
#include "tasks/selftest_problems.h"

namespace bilevel {
namespace {

using namespace testing;

PlainRule plain(double lr) {
  PlainRule rule;
  rule.lr = lr;
  return rule;
}

Implicit implicit_dense(double damping = 0.0) { return Implicit(std::make_unique<Dense>(DenseOptions{.damping = damping})); }
Implicit implicit_cg(int64_t iterations, double damping = 0.0) {
  return Implicit(std::make_unique<Cg>(CgOptions{.iterations = iterations, .tolerance = 1e-14, .damping = damping}));
}
Implicit implicit_neumann(int64_t products) {
  return Implicit(std::make_unique<Neumann>(NeumannOptions{.iterations = products}));
}

// ---- 2: a ridge for each weight, on the diabetes data ----

TEST(GoldDiabetes, IsScikitLearns) {
  const Diabetes data;
  ASSERT_EQ(data.X.sizes(), (std::vector<int64_t>{442, 10}));
  const std::vector<double> first = {0.03807591,  0.05068012,  0.06169621,  0.02187239, -0.0442235,
                                     -0.03482076, -0.04340085, -0.00259226, 0.01990749, -0.01764613};  // load_diabetes().data[0]
  for (int64_t j = 0; j < 10; ++j) EXPECT_NEAR(data.X[0][j].item<double>(), first[static_cast<size_t>(j)], 5e-9);
  EXPECT_NEAR(data.t.mean().item<double>(), 152.13348416, 5e-9);
  // scikit-learn's example of ordinary least squares: the body mass index alone, the last 20 rows held back.
  const at::Tensor bmi = data.X.select(1, 2).narrow(0, 0, 422), target = data.t.narrow(0, 0, 422);
  const at::Tensor centred = bmi - bmi.mean();
  EXPECT_NEAR((centred.dot(target) / centred.dot(centred)).item<double>(), 938.23786125, 5e-9);
}

// g = ½‖X y − t‖²/n + ½ Σ e^{xⱼ} yⱼ²,  f = ½‖X' y − t'‖²/m:  ∂F/∂xⱼ = −e^{xⱼ} y*ⱼ [H⁻¹ ∂y f]ⱼ
struct DiabetesRidge {
  Diabetes data;
  at::Tensor X = data.X.narrow(0, 0, 300), t = data.t.narrow(0, 0, 300) / 100 - 1.5;
  at::Tensor outer_X = data.X.narrow(0, 300, 142), outer_t = data.t.narrow(0, 300, 142) / 100 - 1.5;
  RidgeProblem problem{X, t, outer_X, outer_t};
  at::Tensor x = -7.0 + 0.7 * at::sin(at::arange(10, at::kDouble));

  at::Tensor H(const at::Tensor& at_x) const { return X.t().mm(X) / 300 + at::diag(at_x.exp()); }
  at::Tensor y(const at::Tensor& at_x) const { return at::linalg_inv(H(at_x)).mv(X.t().mv(t) / 300); }
  double F(const at::Tensor& at_x) const { return (outer_X.mv(y(at_x)) - outer_t).square().sum().item<double>() / 284; }
  at::Tensor exact() const {
    const at::Tensor b = outer_X.t().mv(outer_X.mv(y(x)) - outer_t) / 142;
    return -x.exp() * y(x) * at::linalg_inv(H(x)).mv(b);
  }
  double safe_lr() const { return 1 / at::linalg_eigvalsh(H(x)).max().item<double>(); }
};

TEST(GoldDiabetes, HypergradientIsTheClosedFormToTenDigits) {
  const DiabetesRidge ridge;
  const RuleSolver solver = rule_solver(plain(ridge.safe_lr()), 800);
  const at::Tensor exact = ridge.exact();
  EXPECT_LT(relative_error(differences([&](const at::Tensor& x) { return ridge.F(x); }, ridge.x, 1e-4), exact), 1e-5);
  EXPECT_LT(relative_error(estimate(implicit_dense(), ridge.problem, solver, ridge.x).value, exact), 1e-10);
  EXPECT_LT(relative_error(estimate(implicit_cg(30), ridge.problem, solver, ridge.x).value, exact), 1e-10);
  EXPECT_LT(relative_error(estimate(implicit_neumann(800), ridge.problem, solver, ridge.x).value, exact), 1e-10);
  EXPECT_LT(relative_error(estimate(Unrolled(), ridge.problem, solver, ridge.x).value, exact), 1e-10);
  // Neither zero, which is the direct term here, nor what stands for the inverse by one number.
  EXPECT_GT(exact.norm().item<double>(), 1e-3);
  EXPECT_GT(relative_error(estimate(Identity(), ridge.problem, solver, ridge.x).value, exact), 0.1);
  EXPECT_GT(relative_error(estimate(OneStep(), ridge.problem, solver, ridge.x).value, exact), 0.1);
}

TEST(GoldDiabetes, TheLastKStepsAtTheSolutionAreNeumannWithKMinusOneProducts) {
  const DiabetesRidge ridge;
  const RuleSolver solver = rule_solver(plain(ridge.safe_lr()), 40);
  const Extras solved{.y = ridge.y(ridge.x)};
  for (const int64_t k : {1, 2, 5, 20}) {
    const at::Tensor last = estimate(Unrolled({.steps = k}), ridge.problem, solver, ridge.x, solved).value;
    EXPECT_LT(relative_error(last, estimate(implicit_neumann(k - 1), ridge.problem, solver, ridge.x, solved).value), 1e-11) << k;
    EXPECT_GT(relative_error(last, estimate(implicit_neumann(k), ridge.problem, solver, ridge.x, solved).value), 1e-4) << k;
  }
}

// ---- 5: forward mode ----

std::vector<PlainRule> every_rule() {
  PlainRule sgd = plain(0.1), nesterov = plain(0.05), adam = plain(0.03), adamw = plain(0.03);
  nesterov.momentum = 0.9, nesterov.nesterov = true, nesterov.weight_decay = 0.1;
  adam.kind = adamw.kind = PlainRule::Kind::kAdam;
  adam.weight_decay = 0.02;
  adamw.weight_decay = 0.1, adamw.decoupled = true;
  return {sgd, nesterov, adam, adamw};
}

TEST(GoldAgreement, ReverseModeIsForwardModeForEveryRule) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  for (const PlainRule& rule : every_rule()) {
    const RuleSolver solver = rule_solver(rule, 12);
    const at::Tensor forward = estimate(Forward(), problem, solver, x).value;
    EXPECT_LT(relative_error(estimate(Unrolled(), problem, solver, x).value, forward), 1e-12);
    EXPECT_GT(relative_error(estimate(Unrolled({.steps = 11}), problem, solver, x).value, forward), 1e-6);
  }
}

TEST(GoldAgreement, ReverseModeIsForwardModeThroughMinibatchesLearnedRulesAndTheStart) {
  const LogisticWeightsProblem weights;
  const RuleSolver stochastic =
      rule_solver(plain(0.5), 15, BatchPlan::shuffled(weights.inner_samples(), 7, Stream(3, "inner batches")));
  const at::Tensor xw = weights.initial_outer();
  EXPECT_LT(
      relative_error(estimate(Unrolled(), weights, stochastic, xw).value, estimate(Forward(), weights, stochastic, xw).value),
      1e-12);

  const MlpProblem base;
  const LearnedRuleProblem learned(base, 0.08, 0.7);
  PlainRule rule;
  rule.learned_lr = rule.learned_momentum = true;
  const RuleSolver by_x = rule_solver(rule, 10);
  const at::Tensor xl = learned.initial_outer();
  EXPECT_LT(relative_error(estimate(Unrolled(), learned, by_x, xl).value, estimate(Forward(), learned, by_x, xl).value), 1e-12);

  const SinusoidMamlProblem maml({.proximity = 0.5});
  const RuleSolver few = rule_solver(plain(0.1), 3);
  const at::Tensor xm = maml.initial_outer();
  EXPECT_LT(relative_error(estimate(Unrolled(), maml, few, xm, {.slice = 2}).value,
                           estimate(Forward(), maml, few, xm, {.slice = 2}).value),
            1e-12);
}

TEST(GoldAgreement, ReverseModeTendsToTheImplicitHypergradient) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer(), exact = problem.hypergradient(x, problem.solution(x));
  const auto error = [&](int64_t steps) {
    return relative_error(estimate(Unrolled(), problem, rule_solver(plain(1.0), steps), x).value, exact);
  };
  EXPECT_LT(error(600), 1e-9);
  EXPECT_GT(error(20), 1e-4);
}

// ---- 6: invariants ----

TEST(GoldInvariants, LinearSolversAreLinearInTheRightHandSide) {
  const RidgeProblem problem;
  const at::Tensor H = problem.hessian(problem.initial_outer());
  Operator A;
  A.dim = H.size(0);
  A.apply = [&H](const at::Tensor& v) { return H.mv(v); };
  A.step_size = 1 / at::linalg_eigvalsh(H).max();
  Draw draw = Stream(1, "right-hand sides").at(0);
  const at::Tensor b = draw.normal({A.dim}), c = draw.normal({A.dim});
  for (const auto& row : linear_solvers()) {
    // Krylov methods are linear where they have converged, the others after any number of products.
    const bool krylov = std::set<std::string>{"cg", "normal-cg", "minres", "gmres", "bicgstab"}.contains(row.name);
    const std::string keys = krylov ? "iterations = 60\ntolerance = 1e-14" : row.name == "richardson" ? "tolerance = 0" : "";
    Section section = Config::parse(keys, "test.toml").root();
    const auto solver = row.make(section);
    const auto solve = [&](const at::Tensor& right) { return solver->solve(A, right, {}).solution; };
    EXPECT_LT(relative_error(solve(2.5 * b - 1e-3 * c), 2.5 * solve(b) - 1e-3 * solve(c)), 1e-11) << row.name;
    EXPECT_GT(relative_error(solve(c), solve(b)), 0.1) << row.name;
    EXPECT_EQ(solve(at::zeros_like(b)).abs().max().item<double>(), 0.0) << row.name;
    EXPECT_LT(relative_error(solve(1e100 * b), 1e100 * solve(b)), 1e-12) << row.name;
  }
}

TEST(GoldInvariants, ARotationOfYChangesNoHypergradient) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  const int64_t dy = problem.inner_layout().size();
  const at::Tensor P = std::get<0>(at::linalg_qr(Stream(5, "rotation").at(0).normal({dy, dy})));
  const RotatedProblem rotated(problem, P);
  const RuleSolver solver = rule_solver(plain(0.1), 9);
  const auto both = [&](const Estimator& estimator, const InnerSolver& by) {
    const Hypergradient here = estimate(estimator, problem, by, x), there = estimate(estimator, rotated, by, x);
    if (here.q.defined()) {
      EXPECT_LT(relative_error(there.q, P.mv(here.q)), 1e-10);
      EXPECT_GT(relative_error(there.q, here.q), 0.1);
    }
    return relative_error(there.value, here.value);
  };
  const Implicit dense = implicit_dense(), damped = implicit_dense(0.5), cg = implicit_cg(4, 2.0), neumann = implicit_neumann(5);
  const Unrolled unrolled;
  const Identity identity;
  const T1T2 t1_t2;
  for (const Estimator* estimator :
       std::initializer_list<const Estimator*>{&dense, &damped, &cg, &neumann, &unrolled, &identity, &t1_t2}) {
    EXPECT_LT(both(*estimator, solver), 1e-10) << estimator->name();
  }
  // Adam goes by coordinates, so that its trajectory turns with them.
  PlainRule adam = plain(0.05);
  adam.kind = PlainRule::Kind::kAdam;
  EXPECT_GT(both(unrolled, rule_solver(adam, 9)), 1e-2);
}

Hypergradient estimate_on(const Estimator& estimator, const Problem& problem, const RuleSolver& solver, const at::Tensor& inner,
                          const at::Tensor& outer) {
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer();
  InnerSolution solution = solver.solve(oracle, x, 0, {.y = problem.initial_inner(x, 0)}, estimator.trajectory());
  Batch inner_batch, outer_batch;
  inner_batch.samples = inner;
  outer_batch.samples = outer;
  return estimator.estimate({oracle, solver, x, solution, inner_batch, outer_batch, {}});
}

TEST(GoldInvariants, TheOrderOfTheSamplesOfABatchChangesNothing) {
  const LogisticWeightsProblem problem;
  const int64_t n = problem.inner_samples(), m = problem.outer_samples();
  const at::Tensor inner = Stream(2, "order").at(0).permutation(n), outer = Stream(2, "order").at(1).permutation(m);
  const PlainRule rule = plain(0.3);
  const auto by = [&](const at::Tensor& batches) { return rule_solver(rule, 9, BatchPlan::fixed(batches, n)); };
  const at::Tensor halves = inner.reshape({2, n / 2});
  const Unrolled unrolled;
  const Implicit dense = implicit_dense();
  const T1T2 t1_t2;
  const Darts darts;
  for (const Estimator* estimator : std::initializer_list<const Estimator*>{&unrolled, &dense, &t1_t2, &darts}) {
    const at::Tensor whole = estimate_on(*estimator, problem, rule_solver(rule, 9), {}, {}).value;
    EXPECT_LT(relative_error(estimate_on(*estimator, problem, by(inner.unsqueeze(0)), inner, outer).value, whole), 1e-11);
    // Within minibatches too; but which of them comes first matters.
    const at::Tensor ahead = estimate_on(*estimator, problem, by(halves), inner, outer).value;
    EXPECT_LT(relative_error(estimate_on(*estimator, problem, by(halves.flip(1)), inner, outer).value, ahead), 1e-11);
    EXPECT_GT(relative_error(estimate_on(*estimator, problem, by(halves.flip(0)), inner, outer).value, ahead), 1e-4);
  }
}

// ---- 7: the meter ----

Cost cost_of(const Estimator& estimator, int64_t steps) {
  const QuadraticProblem problem({.condition = 1e3});
  const AutodiffOracle autodiff(problem);
  const CountedOracle oracle(autodiff);
  const RuleSolver solver = rule_solver(plain(0.5), steps);
  const at::Tensor x = problem.initial_outer();
  InnerSolution solution = solver.solve(oracle, x, 0, {.y = problem.initial_inner(x, 0)}, estimator.trajectory());
  estimator.estimate({oracle, solver, x, solution, Batch{}, Batch{}, {}});
  return oracle.cost();
}

void expect_cost(const Estimator& estimator, int64_t gradients, int64_t hvps, int64_t cross_products) {
  const Cost cost = cost_of(estimator, 16);
  EXPECT_EQ(cost.gradients, gradients) << estimator.name();
  EXPECT_EQ(cost.hvps, hvps) << estimator.name();
  EXPECT_EQ(cost.cross_products, cross_products) << estimator.name();
  EXPECT_EQ(cost.forwards, 0) << estimator.name();
}

// A solve of T = 16 steps takes T gradients, and one at its end for the stationarity; the outer loss is one more.
constexpr int64_t kSolve = 16 + 1 + 1;

TEST(GoldMeter, CountsWhatUnrollingCosts) {
  expect_cost(Unrolled(), kSolve, 16, 16);
  expect_cost(Unrolled({.memory = Memory::kStates}), kSolve + 16, 16, 16);  // each step linearized again
  expect_cost(Unrolled({.memory = Memory::kCheckpoints}), kSolve + (16 - 4) + 16, 16,
              16);  // all but each fourth point again, too
  expect_cost(Unrolled({.steps = 5}), kSolve, 5, 5);
  expect_cost(OneStep(), kSolve, 1, 1);
}

TEST(GoldMeter, CountsWhatImplicitDifferentiationCosts) {
  // One linearization; K products of CG, one for the true residual, and the last vjp for the cross product.
  for (const int64_t k : {1, 4}) expect_cost(implicit_cg(k), kSolve + 1, k + 1 + 1, 1);
  // K products and, for the residual of the result, one more.
  for (const int64_t k : {1, 4}) expect_cost(implicit_neumann(k), kSolve + 1, k + 1 + 1, 1);
  // A column of H for each of the eight variables and, for the residual, one more.
  expect_cost(implicit_dense(), kSolve + 1, 8 + 1 + 1, 1);
}

TEST(GoldMeter, CountsWhatOneGradientStepCosts) {
  expect_cost(T1T2(), kSolve + 1, 1, 1);
  expect_cost(Identity(), kSolve + 1, 1, 1);
  expect_cost(Darts(), kSolve + 2, 0, 0);  // two gradients ∂x g and no second derivative
}

}  // namespace
}  // namespace bilevel
