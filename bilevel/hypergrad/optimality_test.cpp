#include "bilevel/hypergrad/optimality.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/hypergrad/darts.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/one_step.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/dense.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/function_problem.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::optimality_test {
namespace {

using namespace testing;
using ::testing::Contains;
using ::testing::HasSubstr;

at::Tensor drawn(const char* purpose, at::IntArrayRef sizes) { return Stream(7, purpose).at(0).normal(sizes); }

Implicit dense(ImplicitOptions options = {}) { return Implicit(std::make_unique<Dense>(DenseOptions{}), options); }
Implicit cg(int64_t iterations = 30, ImplicitOptions options = {}) {
  return Implicit(std::make_unique<Cg>(CgOptions{.iterations = iterations, .tolerance = 1e-14}), options);
}
RuleSolver sgd(double lr, int64_t steps, double tolerance = 0.0, SgdRuleOptions rule = {}) {
  return {std::make_unique<SgdRule>(rule), {.lr = lr, .steps = steps, .tolerance = tolerance}};
}

// ---- Optimality maps given directly ----

// A deep equilibrium: y = tanh(W y + U x + b), ‖W‖ < 1 and not symmetric; f = ½‖y − d‖² + ⟨c, x⟩ y₀.
struct Equilibrium {
  static constexpr int64_t dy = 6, dx = 3;
  at::Tensor W = 0.25 * drawn("W", {dy, dy}), U = drawn("U", {dy, dx}), b = drawn("b", {dy});
  at::Tensor d = drawn("d", {dy}), c = drawn("c", {dx}), x = drawn("x", {dx});

  at::Tensor phi(const at::Tensor& at_x, const at::Tensor& y) const { return at::tanh(W.mv(y) + U.mv(at_x) + b); }
  at::Tensor f(const at::Tensor& at_x, const at::Tensor& y) const { return (y - d).square().sum() / 2 + c.dot(at_x) * y[0]; }
  at::Tensor solve(const at::Tensor& at_x) const {
    at::Tensor y = at::zeros({dy}, at::kDouble);
    for (int i = 0; i < 400; ++i) y = phi(at_x, y);
    return y;
  }
  FunctionProblem problem() const {
    return FunctionProblem({.outer_loss = [this](const at::Tensor& at_x, const at::Tensor& y) { return f(at_x, y); },
                            .x0 = x,
                            .y0 = at::zeros({dy}, at::kDouble),
                            .optimality_map = [this](const at::Tensor& at_x, const at::Tensor& y) { return y - phi(at_x, y); }});
  }
  // ∇F by matrices; with the wrong side of ∂y r where asked.
  at::Tensor gradient(bool wrong_side = false) const {
    const at::Tensor y = solve(x), slope = (1 - y * y).unsqueeze(1);
    const at::Tensor J = at::eye(dy, at::kDouble) - slope * W, K = -slope * U;
    at::Tensor by_y = y - d;
    by_y[0] += c.dot(x);
    return c * y[0] - K.t().mv(at::linalg_solve(wrong_side ? J : J.t(), by_y));
  }
};

TEST(Optimality, DifferentiatesAFixedPointThatIsNoGradient) {
  const Equilibrium deq;
  const FunctionProblem problem = deq.problem();
  const auto F = [&](const at::Tensor& x) { return deq.f(x, deq.solve(x)).item<double>(); };
  const Hypergradient h = estimate(dense(), problem, sgd(1.0, 500, 1e-14), deq.x);
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
  EXPECT_LT(relative_error(h.value, deq.gradient()), 1e-12);
  EXPECT_LT(relative_error(h.value, differences(F, deq.x)), 1e-7);
  EXPECT_GT(relative_error(deq.gradient(true), deq.gradient()), 0.02);
  EXPECT_GT(relative_error(h.direct, deq.gradient()), 0.1);
  EXPECT_LT(h.inner_loss, 1e-27);  // ½‖r‖²
}

TEST(Optimality, UnrollsTheStepsTowardsAFixedPointExactly) {
  const Equilibrium deq;
  const FunctionProblem problem = deq.problem();
  for (const int64_t steps : {1, 4}) {
    const auto expected = [&](int64_t held) {
      const at::AutoGradMode grad_mode(true);
      const at::Tensor x = deq.x.clone().requires_grad_(true);
      at::Tensor y = at::zeros({Equilibrium::dy}, at::kDouble);
      for (int64_t t = 0; t < steps; ++t) {
        y = y - 0.7 * (y - deq.phi(x, y));
        if (t < held) y = y.detach();
      }
      return torch::autograd::grad({deq.f(x, y)}, {x})[0];
    };
    EXPECT_LT(relative_error(estimate(Unrolled(), problem, sgd(0.7, steps), deq.x).value, expected(0)), 1e-13);
    EXPECT_LT(relative_error(estimate(OneStep(), problem, sgd(0.7, steps), deq.x).value, expected(steps - 1)), 1e-13);
  }
  EXPECT_LT(relative_error(estimate(Unrolled(), problem, sgd(1.0, 200), deq.x).value, deq.gradient()), 1e-10);
}

TEST(Optimality, RefusesWhatServesGradientsOnly) {
  const Equilibrium deq;
  const FunctionProblem problem = deq.problem();
  EXPECT_TRUE(dense().objections(problem, sgd(1.0, 5)).empty());
  EXPECT_THAT(cg().objections(problem, sgd(1.0, 5)), Contains(HasSubstr("gmres")));
  EXPECT_THAT(dense({.gauss_newton = true}).objections(problem, sgd(1.0, 5)), Contains(HasSubstr("outputs")));
  EXPECT_THAT(Darts().objections(problem, sgd(1.0, 5)), Contains(HasSubstr("optimality map")));
  const RuleSolver automatic(std::make_unique<SgdRule>(SgdRuleOptions{}), {.steps = 5});
  EXPECT_THROW(estimate(dense(), problem, automatic, deq.x), Error);
}

// min ½ zᵀ Q z − x ᵀz with E z = e(x): y = (z, λ) solves a symmetric indefinite system, which no descent finds.
TEST(Optimality, DifferentiatesAKktSystem) {
  const at::Tensor A = drawn("A", {4, 4}), Q = A.mm(A.t()) + at::eye(4, at::kDouble), E = drawn("E", {2, 4});
  const at::Tensor d = drawn("d", {6}), x0 = drawn("x", {4});
  const at::Tensor K = at::cat({at::cat({Q, E.t()}, 1), at::cat({E, at::zeros({2, 2}, at::kDouble)}, 1)});
  const auto right = [](const at::Tensor& x) { return at::cat({x, x.narrow(0, 0, 2).sin()}); };
  const auto f = [d](const at::Tensor&, const at::Tensor& y) { return (y - d).square().sum() / 2; };
  FunctionProblemOptions options{.outer_loss = f,
                                 .x0 = x0,
                                 .y0 = at::linalg_solve(K, right(x0)),
                                 .optimality_map = [&](const at::Tensor& x, const at::Tensor& y) { return K.mv(y) - right(x); },
                                 .symmetric = true};
  const FunctionProblem problem(options);
  const auto F = [&](const at::Tensor& x) { return f(x, at::linalg_solve(K, right(x))).item<double>(); };
  const Hypergradient h = estimate(dense(), problem, sgd(0.1, 0), x0);
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
  EXPECT_LT(relative_error(h.value, differences(F, x0)), 1e-7);
  EXPECT_TRUE(cg().objections(problem, sgd(0.1, 0)).empty());
  const Hypergradient indefinite = estimate(cg(), problem, sgd(0.1, 0), x0);
  EXPECT_EQ(indefinite.grade, Grade::kBad);  // symmetric, but a saddle
}

// r_j = y_j³ + y_j − x_j: dy/dx = 1/(3 y² + 1), a symmetric map, on which cg works.
TEST(Optimality, DifferentiatesARootWithASymmetricDerivative) {
  const at::Tensor x = at::tensor({2.0, 10.0, -30.0}, at::kDouble), y = at::tensor({1.0, 2.0, -3.0}, at::kDouble);
  const at::Tensor b = at::tensor({1.0, -2.0, 5.0}, at::kDouble);
  const FunctionProblem problem(
      {.outer_loss = [b](const at::Tensor&, const at::Tensor& at_y) { return at_y.dot(b); },
       .x0 = x,
       .y0 = at::zeros({3}, at::kDouble),
       .optimality_map = [](const at::Tensor& at_x, const at::Tensor& at_y) { return at_y.pow(3) + at_y - at_x; },
       .symmetric = true});
  const Hypergradient h = estimate(cg(), problem, sgd(0.03, 3000, 1e-12), x);
  EXPECT_LT(relative_error(h.value, b / (3 * y * y + 1)), 1e-11);
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
}

// A fixed point whose iteration turns: ‖r‖ may rise on the way there, and is no sign of divergence.
TEST(Optimality, DoesNotCallATurningIterationDiverged) {
  const at::Tensor W = at::tensor({0.0, -3.0, 0.2, 0.0}, at::kDouble).reshape({2, 2});  // eigenvalues ±0.77i, norm 3
  const FunctionProblem problem({.outer_loss = [](const at::Tensor&, const at::Tensor& y) { return y.sum(); },
                                 .x0 = at::tensor({1.0, 1.0}, at::kDouble),
                                 .y0 = at::zeros({2}, at::kDouble),
                                 .optimality_map = [W](const at::Tensor& x, const at::Tensor& y) { return y - W.mv(y) - x; }});
  const AutodiffOracle oracle(problem);
  for (int64_t steps = 1; steps < 8; ++steps) {
    const InnerSolution solution = sgd(1.0, steps).solve(oracle, problem.initial_outer(), 0, {problem.initial_inner({}, 0)}, {});
    EXPECT_EQ(solution.status, Status::kIterationLimit) << steps << ": " << solution.message;
  }
  const InnerSolution lost = sgd(2.5, 30).solve(oracle, problem.initial_outer(), 0, {problem.initial_inner({}, 0)}, {});
  EXPECT_EQ(lost.status, Status::kDiverged);
}

// ---- Rules that move the optimum ----

// g = ½‖A y − t‖²/n, with a ridge where asked; x scales the targets and shifts f.
struct Regression {
  at::Tensor A = drawn("design", {12, 3}), T = drawn("targets", {12, 2}), d = drawn("goal", {3});
  at::Tensor x = at::tensor({0.8, -0.6}, at::kDouble);
  at::Tensor g(const at::Tensor& at_x, const at::Tensor& y) const {
    return (A.mv(y) - T.mv(at_x) - 0.1 * T.mv(at_x).square()).square().mean() / 2;
  }
  at::Tensor f(const at::Tensor& at_x, const at::Tensor& y) const {
    return (y - d).square().sum() / 2 + 0.3 * at_x.dot(at_x) * y[0];
  }
  FunctionProblem problem(double ridge = 0.0) const {
    return FunctionProblem(
        {.inner_loss = [this, ridge](const at::Tensor& at_x, const at::Tensor& y) { return g(at_x, y) + ridge / 2 * y.dot(y); },
         .outer_loss = [this](const at::Tensor& at_x, const at::Tensor& y) { return f(at_x, y); },
         .x0 = x,
         .y0 = at::zeros({3}, at::kDouble)});
  }
};

RuleSolver adam(AdamRuleOptions options, int64_t steps, double lr = 0.05) {
  return {std::make_unique<AdamRule>(options), {.lr = lr, .steps = steps, .tolerance = 1e-12}};
}

TEST(Optimality, OfACoupledWeightDecayIsThatOfTheSameRidgeInTheLoss) {
  const Regression regression;
  const FunctionProblem plain = regression.problem(), ridge = regression.problem(0.1);
  const Hypergradient inside = estimate(cg(), ridge, sgd(0.3, 5000, 1e-13), regression.x);
  for (const Implicit& estimator : {cg(), dense()}) {
    const Hypergradient decayed = estimate(estimator, plain, sgd(0.3, 5000, 1e-13, {.weight_decay = 0.1}), regression.x);
    EXPECT_LT(relative_error(decayed.value, inside.value), 1e-8);
    EXPECT_EQ(decayed.grade, Grade::kOk) << decayed.message;
  }
  EXPECT_GT(relative_error(estimate(cg(), plain, sgd(0.3, 5000, 1e-13), regression.x).value, inside.value), 0.01);
}

TEST(Optimality, OfAdamIsThatOfTheLossAndOfItsWeightDecayTheRidge) {
  const Regression regression;
  const FunctionProblem plain = regression.problem();
  const AdamRuleOptions calm{.beta1 = 0.5, .beta2 = 0.9, .eps = 0.3};
  const Hypergradient by_sgd = estimate(cg(), plain, sgd(0.3, 5000, 1e-12), regression.x);
  const Hypergradient by_adam = estimate(cg(), plain, adam(calm, 20000), regression.x);
  EXPECT_LT(relative_error(by_adam.value, by_sgd.value), 1e-8);
  AdamRuleOptions decayed = calm;
  decayed.weight_decay = 0.1;
  const Hypergradient with_decay = estimate(cg(), plain, adam(decayed, 20000), regression.x);
  EXPECT_LT(relative_error(with_decay.value, estimate(cg(), regression.problem(0.1), sgd(0.3, 5000, 1e-12), regression.x).value),
            1e-8);
}

TEST(Optimality, OfAdamwIsWhereItReallyStops) {
  const Regression regression;
  const FunctionProblem plain = regression.problem();
  const AdamRuleOptions options{.beta1 = 0.5, .beta2 = 0.9, .eps = 0.3, .weight_decay = 0.2, .decoupled = true};
  const RuleSolver solver = adam(options, 20000);
  const AutodiffOracle oracle(plain);
  const auto F = [&](const at::Tensor& x) {
    const InnerSolution end = solver.solve(oracle, x, 0, {plain.initial_inner(x, 0)}, {});
    EXPECT_EQ(end.status, Status::kConverged) << end.message;
    return regression.f(x, end.y).item<double>();
  };
  const at::Tensor expected = differences(F, regression.x);
  // Scaled, its derivative is symmetric, so that cg serves.
  for (const Implicit& estimator : {cg(), dense()}) {
    const Hypergradient h = estimate(estimator, plain, solver, regression.x);
    EXPECT_LT(relative_error(h.value, expected), 1e-5) << h.value << expected;
    EXPECT_EQ(h.grade, Grade::kOk) << h.message;
  }
  EXPECT_GT(relative_error(estimate(cg(), plain, sgd(0.3, 5000, 1e-12), regression.x).value, expected), 0.01);
  EXPECT_GT(relative_error(estimate(cg(), plain, sgd(0.3, 5000, 1e-12, {.weight_decay = 0.2}), regression.x).value, expected),
            0.01);
}

// The ridge of RidgeProblem, moved from the loss into the rule: one weight decay for each weight, determined by x.
TEST(Optimality, DifferentiatesAWeightDecayThatXDetermines) {
  class Decayed final : public Problem {
   public:
    const Layout& outer_layout() const override { return ridge.outer_layout(); }
    const Layout& inner_layout() const override { return ridge.inner_layout(); }
    at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
      return ridge.inner_loss(x.detach(), y, batch) - 0.5 * (x.detach().exp() * y.square()).sum();
    }
    at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
      return ridge.outer_loss(x, y, batch);
    }
    at::Tensor initial_outer() const override { return ridge.initial_outer() - 0.5; }
    at::Tensor initial_inner(const at::Tensor& x, int64_t) const override { return ridge.solution(x.detach()); }
    bool has_rule_hyperparameters() const override { return true; }
    RuleHyperparameters rule_hyperparameters(const at::Tensor& x, int64_t) const override { return {{"weight_decay", x.exp()}}; }
    RidgeProblem ridge;
  } problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = sgd(0.1, 0, 0.0, {.learned = {"weight_decay"}});
  EXPECT_TRUE(cg().objections(problem, solver).empty());
  const Hypergradient h = estimate(cg(), problem, solver, x);
  EXPECT_LT(relative_error(h.value, problem.ridge.hypergradient(x)), 1e-10);
  EXPECT_LT(relative_error(h.q, at::linalg_solve(problem.ridge.hessian(x), outer_grad_y(problem, x, problem.ridge.solution(x)))),
            1e-10);
  EXPECT_LT(h.direct.norm().item<double>(), 1e-15);
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
}

// Both sides of one Jacobian, for a scaled and for an unscaled map, and blocks.
TEST(Optimality, IsALinearizationWithBothSidesAlike) {
  const at::Tensor signs = at::tensor({1.0, -1.0, 0.9}, at::kDouble), M = at::eye(3, at::kDouble) + 0.1,
                   x = at::tensor({1.0, 0.1}, at::kDouble);
  const FunctionProblem problem({.inner_loss =
                                     [&](const at::Tensor& at_x, const at::Tensor& y) {
                                       const at::Tensor e = y - 20 * signs * at_x[0];
                                       return e.dot(M.mv(e)) / 2 + at_x[1].sin() * y.sum();
                                     },
                                 .outer_loss = [](const at::Tensor&, const at::Tensor& y) { return y.sum(); },
                                 .x0 = x,
                                 .y0 = signs});
  const at::Tensor u = drawn("u", {2}), v = drawn("v", {3}), w = drawn("w", {3});
  for (const double length : {0.5, 9.0}) {  // 9: past 1/w = 5, where AdamW is not at rest and its map is not scaled
    const at::Tensor y = length * signs;
    AdamRuleOptions options{.eps = 0.3, .weight_decay = 0.2, .decoupled = true};
    const RuleSolver solver = adam(options, 1);
    const auto lin = AutodiffOracle(problem).linearize_inner(x, y, {});
    const auto r = optimality(solver, problem, x, y, *lin).linearization;
    ASSERT_NE(r, nullptr);
    EXPECT_EQ(r->symmetric(), length < 5);
    EXPECT_NEAR(r->jvp_y(v).dot(w).item<double>(), r->vjp(w).y.dot(v).item<double>(), 1e-11);
    EXPECT_NEAR(r->jvp_x(u).dot(w).item<double>(), r->vjp(w).x.dot(u).item<double>(), 1e-11);
    EXPECT_LT(relative_error(r->jvp_y(at::stack({v, w}))[1], r->jvp_y(w)), 1e-14);
    EXPECT_LT(relative_error(r->vjp(at::stack({v, w})).y[0], r->vjp(v).y), 1e-14);
    EXPECT_LT(relative_error(r->vjp(at::stack({v, w})).x[1], r->vjp(w).x), 1e-14);
    if (length > 5) {
      // Unscaled it is the derivative of ρ itself.
      const auto rho = [&](const at::Tensor& at_y) {
        const at::Tensor g = AutodiffOracle(problem).inner(x, at_y, {}).y;
        return solver.residual(problem, x, at_y, g);
      };
      EXPECT_LT(relative_error(r->jvp_y(v), (rho(y + 1e-6 * v) - rho(y - 1e-6 * v)) / 2e-6), 1e-7);
      EXPECT_EQ(estimate(cg(), problem, adam(options, 0), x, {.y = y}).grade, Grade::kBad);
      EXPECT_NE(estimate(dense(), problem, adam(options, 0), x, {.y = y}).value.norm().item<double>(), 0.0);
    } else {
      EXPECT_LT((r->jvp_y(v).dot(w) - r->jvp_y(w).dot(v)).abs().item<double>(), 1e-13);
    }
  }
  EXPECT_EQ(optimality(sgd(0.1, 1), problem, x, v, *AutodiffOracle(problem).linearize_inner(x, v, {})).linearization, nullptr);
}

// H = diag(1 … 10⁴) and a little beside it. Adam's √v follows the gradients, hence the curvatures.
TEST(Optimality, AdamsSecondMomentPreconditionsConjugateGradients) {
  const int64_t n = 30;
  const at::Tensor h = at::logspace(0, 4, n, 10, at::kDouble), A = 0.01 * drawn("coupling", {n, n}), d = drawn("d30", {n});
  const at::Tensor H = at::diag(h) + A.mm(A.t());
  const FunctionProblem problem(
      {.inner_loss = [&](const at::Tensor& x, const at::Tensor& y) { return y.dot(H.mv(y)) / 2 - y.dot(x * h); },
       .outer_loss = [&](const at::Tensor&, const at::Tensor& y) { return (y - d).square().sum() / 2; },
       .x0 = at::ones({n}, at::kDouble),
       .y0 = at::zeros({n}, at::kDouble)});
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver = adam({}, 20, 0.02);
  const Hypergradient plain = estimate(cg(12), problem, solver, x),
                      by_rule = estimate(cg(12, {.precondition_by_rule = true}), problem, solver, x);
  EXPECT_LT(*by_rule.certificate.relative_residual, 1e-8);
  EXPECT_GT(*plain.certificate.relative_residual, 1e-3);
  EXPECT_TRUE(cg(5, {.precondition_by_rule = true}).objections(problem, solver).empty());
  EXPECT_THAT(cg(5, {.precondition_by_rule = true}).objections(problem, sgd(0.1, 5)), Contains(HasSubstr("adam")));
}

// ---- Negative curvature ----

struct Saddle : ::testing::Test {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0).detach();
  const at::Tensor H = hessian(problem, x, y), b = outer_grad_y(problem, x, y);
  const RuleSolver solver = sgd(0.1, 0);
  Hypergradient with(OnIndefinite on_indefinite) const {
    return estimate(Implicit(std::make_unique<Cg>(CgOptions{.iterations = 200, .tolerance = 1e-12}),
                             {.on_indefinite = on_indefinite}, std::make_unique<Dense>(DenseOptions{})),
                    problem, solver, x);
  }
  at::Tensor value_of(const at::Tensor& q) const { return outer_grad_x(problem, x, y) - cross(problem, x, y).t().mv(q); }
};

TEST_F(Saddle, StopsUnlessTheUserChoseAWayOn) {
  const Hypergradient h = with(OnIndefinite::kStop);
  EXPECT_EQ(h.grade, Grade::kBad);
  EXPECT_THAT(h.message, HasSubstr("negative curvature"));
}

TEST_F(Saddle, DampsUntilTheSolvePassesAndSaysByHowMuch) {
  const Hypergradient h = with(OnIndefinite::kDamp);
  EXPECT_EQ(h.grade, Grade::kWarn) << h.message;
  const at::Tensor rest = b - H.mv(h.q);
  const double delta = (rest.dot(h.q) / h.q.dot(h.q)).item<double>();
  EXPECT_LT(((rest - delta * h.q).norm() / b.norm()).item<double>(), 1e-9);
  EXPECT_GT(delta, -at::linalg_eigvalsh(H).min().item<double>() / 100);
  EXPECT_THAT(h.message, HasSubstr(fmt::format("damping {:.3g} was added", delta)));
  EXPECT_LT(relative_error(h.value, value_of(h.q)), 1e-12);
}

TEST_F(Saddle, FallsBackOnGaussNewtonOrOnAnotherSolver) {
  const Hypergradient gauss_newton = with(OnIndefinite::kGaussNewton);
  const Hypergradient always = estimate(cg(200, {.gauss_newton = true}), problem, solver, x);
  EXPECT_EQ(gauss_newton.grade, Grade::kWarn) << gauss_newton.message;
  EXPECT_THAT(gauss_newton.message, HasSubstr("Gauss–Newton"));
  EXPECT_LT(relative_error(gauss_newton.value, always.value), 1e-8);

  const Hypergradient other = with(OnIndefinite::kMinres);
  EXPECT_EQ(other.grade, Grade::kWarn) << other.message;
  EXPECT_LT(relative_error(other.value, value_of(at::linalg_solve(H, b))), 1e-8);
  EXPECT_GT(relative_error(other.value, gauss_newton.value), 0.01);
  EXPECT_THROW(Implicit(std::make_unique<Cg>(CgOptions{}), {.on_indefinite = OnIndefinite::kMinres}), Error);
}

TEST_F(Saddle, TheWayOnIsReadFromAConfiguration) {
  Section section = Config::parse("iterations = 80\non_indefinite = \"minres\"\n", "test.toml").root();
  const Hypergradient h = estimate(*make_estimator("implicit", section), problem, solver, x);
  EXPECT_EQ(h.grade, Grade::kWarn) << h.message;
  EXPECT_THAT(h.message, HasSubstr("minres took its place"));
  EXPECT_LT(relative_error(h.value, value_of(at::linalg_solve(H, b))), 1e-5);
  Section both = Config::parse("curvature = \"gauss-newton\"\non_indefinite = \"gauss-newton\"\n", "test.toml").root();
  EXPECT_THROW(make_estimator("implicit", both), Error);
}

// The solvers for systems without symmetry, from their registry names.
TEST(Optimality, IsServedByEverySolverThatNeedsNoSymmetry) {
  const Equilibrium deq;
  const FunctionProblem problem = deq.problem();
  for (const char* solver : {"gmres", "bicgstab", "normal-cg", "dense"}) {
    const bool direct = std::string(solver) == "dense";
    Section section =
        Config::parse(fmt::format("solver = \"{}\"\n{}", solver, direct ? "" : "iterations = 60\n"), "test.toml").root();
    const auto estimator = make_estimator("implicit", section);
    EXPECT_TRUE(estimator->objections(problem, sgd(1.0, 500, 1e-14)).empty()) << solver;
    const Hypergradient h = estimate(*estimator, problem, sgd(1.0, 500, 1e-14), deq.x);
    EXPECT_EQ(h.grade, Grade::kOk) << solver << ": " << h.message;
    EXPECT_LT(relative_error(h.value, deq.gradient()), 1e-8) << solver;
  }
  Section neumann = Config::parse("solver = \"neumann\"\niterations = 200\n", "test.toml").root();
  EXPECT_LT(
      relative_error(estimate(*make_estimator("implicit", neumann), problem, sgd(1.0, 500, 1e-14), deq.x).value, deq.gradient()),
      1e-8);
}

}  // namespace
}  // namespace bilevel::optimality_test
