#include "bilevel/hypergrad/moreau.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/dense.h"
#include "bilevel/linear/richardson.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::moreau_test {
namespace {

using namespace testing;
using ::testing::HasSubstr;

/// g = ½ yᵀA y − yᵀ(B x + c), f = Σ cos(y) + ½‖x‖², from y₀ = M x: its proximal step is known.
class FineTuning final : public Problem {
 public:
  explicit FineTuning(const at::Tensor& A) : A_(A) {
    Draw draw = Stream(0, "fine-tuning").at(0);
    const int64_t dy = A.size(0), dx = 4;
    B_ = draw.normal({dy, dx});
    M_ = draw.normal({dy, dx});
    c_ = draw.normal({dy});
    x0_ = draw.normal({dx});
    outer_.add("x", {dx});
    inner_.add("y", {dy});
  }
  const Layout& outer_layout() const override { return outer_; }
  const Layout& inner_layout() const override { return inner_; }
  at::Tensor initial_outer() const override { return x0_; }
  at::Tensor initial_inner(const at::Tensor& x, int64_t) const override { return M_.mv(x); }
  bool initial_inner_depends_on_outer() const override { return true; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return 0.5 * y.dot(A_.mv(y)) - y.dot(B_.mv(x) + c_);
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return y.cos().sum() + 0.5 * x.square().sum();
  }
  at::Tensor proximal_step(const at::Tensor& x, double gamma) const {
    return at::linalg_solve(A_ + at::eye(A_.size(0), A_.options()) / gamma, B_.mv(x) + c_ + M_.mv(x) / gamma);
  }
  at::Tensor derivative(const at::Tensor& x, double gamma) const {
    return differences([&](const at::Tensor& at) { return outer_loss(at, proximal_step(at, gamma), {}).item<double>(); }, x);
  }
  const at::Tensor& M() const { return M_; }
  void take_out_x() { B_.zero_(); }

 private:
  Layout outer_, inner_;
  at::Tensor A_, B_, M_, c_, x0_;
};

at::Tensor positive_definite(int64_t d) {
  const at::Tensor L = Stream(1, "fine-tuning").at(0).normal({d, d});
  return L.mm(L.t()) / static_cast<double>(d) + 0.2 * at::eye(d, at::kDouble);
}

std::unique_ptr<LinearSolver> cg() { return std::make_unique<Cg>(CgOptions{.iterations = 100, .tolerance = 1e-14}); }

/// At the end y of an inner solve.
Hypergradient at_end(const Moreau& moreau, const Problem& problem, const at::Tensor& x, const at::Tensor& y) {
  const AutodiffOracle oracle(problem);
  const RuleSolver solver = rule_solver({.lr = 0.1}, 0);
  InnerSolution solution;
  solution.y = y;
  solution.status = Status::kConverged;
  EstimatorInput input{oracle, solver, x, solution, {}, {}, {}};
  input.start.y = problem.initial_inner(x, 0);
  return moreau.estimate(input);
}

TEST(Moreau, IsTheDerivativeThroughAProximalStep) {
  const FineTuning problem(positive_definite(9));
  const at::Tensor x = problem.initial_outer();
  for (const double gamma : {0.5, 1.0, 10.0}) {
    const at::Tensor y = problem.proximal_step(x, gamma), expected = problem.derivative(x, gamma);
    const Hypergradient h = at_end(Moreau(cg(), {.gamma = gamma}), problem, x, y);
    EXPECT_LT(relative_error(h.value, expected), 1e-8);
    EXPECT_EQ(h.grade, Grade::kOk) << h.message;
    EXPECT_EQ(h.certificate.differentiates, "F_T, with a proximal step for the inner solve");
    // Neither term alone, nor that of another γ, nor the whole of ∂y f for the way from y₀.
    EXPECT_GT(relative_error(h.direct, expected), 0.05);
    EXPECT_GT(relative_error(problem.derivative(x, 2 * gamma), expected), 0.05);
    EXPECT_GT(relative_error(h.direct + problem.M().t().mv(h.q / gamma), expected), 0.05);
    EXPECT_GT(relative_error(h.value - problem.M().t().mv(h.q / gamma), expected), 0.05);
    EXPECT_GT(relative_error(h.direct + problem.M().t().mv(outer_grad_y(problem, x, y)), expected), 0.05);
  }
}

TEST(Moreau, NoCurvatureLeavesTheGradientAndAMultipleOfTheIdentityShrinksIt) {
  for (const double h : {0.0, 3.0}) {
    FineTuning problem(h * at::eye(6, at::kDouble));
    problem.take_out_x();
    const at::Tensor x = problem.initial_outer(), y = at::linspace(-1, 1, 6, at::kDouble), b = outer_grad_y(problem, x, y);
    const Hypergradient found = at_end(Moreau(cg(), {.gamma = 0.7}), problem, x, y);
    EXPECT_LT(relative_error(found.value - found.direct, problem.M().t().mv(b) / (1 + 0.7 * h)), 1e-12);
  }
}

TEST(Moreau, AFixedPointGivesTheSameWhateverItsStep) {
  const FineTuning problem(positive_definite(9));
  const at::Tensor x = problem.initial_outer(), y = problem.proximal_step(x, 1.0), expected = problem.derivative(x, 1.0);
  for (const double scale : {0.0, 0.1, 0.2}) {
    const Moreau moreau(std::make_unique<Richardson>(RichardsonOptions{.iterations = 2000, .scale = scale}), {.gamma = 1.0});
    const Hypergradient h = at_end(moreau, problem, x, y);
    EXPECT_LT(relative_error(h.value, expected), 1e-8);
    // Curvatures up to 4 do not settle with a step of γ.
    EXPECT_EQ(h.grade, scale == 0 ? Grade::kWarn : Grade::kOk) << h.message;
    if (scale == 0) {
      EXPECT_THAT(h.message, HasSubstr("halved"));
    }
  }
  const Moreau rigid(std::make_unique<Richardson>(RichardsonOptions{.iterations = 2000}), {.gamma = 1.0, .halvings = 0});
  const Hypergradient lost = at_end(rigid, problem, x, y);
  EXPECT_EQ(lost.grade, Grade::kBad);
  EXPECT_THAT(lost.message, HasSubstr("diverge"));
}

TEST(Moreau, ComesToTheImplicitDerivativeAsGammaGrows) {
  const RidgeProblem problem;
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x), expected = problem.hypergradient(x);
  double before = 1e9;
  for (const double gamma : {1e0, 1e2, 1e4, 1e6}) {
    const double error = relative_error(at_end(Moreau(cg(), {.gamma = gamma}), problem, x, y).value, expected);
    EXPECT_LT(error, 0.1 * before);
    before = error;
  }
  EXPECT_LT(before, 1e-5);
}

// (I − ηH)ᵀ and (I + ηT H)⁻¹ differ by terms of second order in ηT.
TEST(Moreau, IsRightToFirstOrderOfAFewSmallSteps) {
  const FineTuning problem(positive_definite(9));
  const at::Tensor x = problem.initial_outer();
  std::vector<double> errors;
  for (const double lr : {0.002, 0.001, 0.0005}) {
    const PlainRule rule{.lr = lr};
    const Hypergradient h = estimate(Moreau(cg()), problem, rule_solver(rule, 5), x);
    errors.push_back((h.value - unrolled_gradient(problem, x, rule, 5)).norm().item<double>());
  }
  EXPECT_NEAR(errors[0] / errors[1], 4, 0.7);
  EXPECT_NEAR(errors[1] / errors[2], 4, 0.4);
}

TEST(Moreau, RefusesACurvatureThatNoProximalStepStands) {
  const at::Tensor x = FineTuning(positive_definite(5)).initial_outer();
  at::Tensor A = positive_definite(5) - 3 * at::eye(5, at::kDouble);
  const FineTuning problem(A);
  const Hypergradient h = at_end(Moreau(cg(), {.gamma = 1.0}), problem, x, at::ones({5}, at::kDouble));
  EXPECT_EQ(h.grade, Grade::kBad);
  EXPECT_THAT(h.message, HasSubstr("no proximal step"));
  EXPECT_EQ(at_end(Moreau(cg(), {.gamma = 0.2}), problem, x, at::ones({5}, at::kDouble)).grade, Grade::kOk);
}

TEST(Moreau, KeepsNoTrajectoryAndCountsItsProducts) {
  const SinusoidMamlProblem problem;
  const AutodiffOracle plain(problem);
  CountedOracle oracle(plain);
  const at::Tensor x = problem.initial_outer();
  const Moreau moreau(std::make_unique<Cg>(CgOptions{.iterations = 3, .tolerance = 0}));
  EXPECT_FALSE(moreau.trajectory().keep);
  const RuleSolver solver = rule_solver({.lr = 0.01}, 40);
  InnerSolution solution = solver.solve(oracle, x, 0, {.y = x}, moreau.trajectory());
  const Cost before = oracle.cost();
  EstimatorInput input{oracle, solver, x, solution, {}, {}, {}};
  moreau.estimate(input);
  const Cost cost = oracle.cost() - before;
  EXPECT_LE(cost.hvps, 3 + 2);  // the last one for the true residual, and one with the cross product
  EXPECT_EQ(cost.cross_products, 1);
}

TEST(Moreau, RefusesWhatItCannotDifferentiate) {
  const RidgeProblem base;
  const Moreau automatic(cg()), given(cg(), {.gamma = 1.0});
  EXPECT_THAT(automatic.objections(base, rule_solver({.kind = PlainRule::Kind::kAdam}, 5)),
              ::testing::ElementsAre(HasSubstr("gamma")));
  EXPECT_TRUE(given.objections(base, rule_solver({.kind = PlainRule::Kind::kAdam}, 5)).empty());
  EXPECT_TRUE(automatic.objections(base, rule_solver({}, 5)).empty());
  const LearnedRuleProblem learned(base, 0.1);
  EXPECT_THAT(given.objections(learned, rule_solver({.learned_lr = true}, 5)), ::testing::ElementsAre(HasSubstr("update rule")));
  EXPECT_THROW(Moreau(nullptr), Error);
  EXPECT_THROW(Moreau(cg(), {.gamma = -1}), Error);
}

}  // namespace
}  // namespace bilevel::moreau_test
