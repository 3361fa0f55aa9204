#include "bilevel/inner/proximal_gradient.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/inner/closed_form.h"
#include "bilevel/inner/constrained_for_tests.h"
#include "bilevel/inner/constraints.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/inner/registry.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::proximal_gradient_test {
namespace {

using testing::HasSubstr;

InnerSolution solve(const Problem& problem, ProximalGradientOptions options = {}) {
  const at::Tensor x = problem.initial_outer();
  return ProximalGradient(options).solve(AutodiffOracle(problem), x, 0, {problem.initial_inner(x, 0)}, {});
}

double gap(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).norm().item<double>() / (1e-300 + b.norm().item<double>());
}
at::Tensor number(double value) { return at::scalar_tensor(value, at::kDouble); }

TEST(ProximalGradient, SatisfiesTheConditionsOfTheLassoWithZerosThatAreZeros) {
  const RidgeProblem base({.features = 12});
  const at::Tensor x = base.initial_outer();
  const AutodiffOracle oracle(base);
  const double lambda = 0.5 * oracle.inner(x, at::zeros({12}, at::kDouble), {}).y.abs().max().item<double>();
  for (const bool accelerated : {true, false}) {
    const Constrained problem(base, {.l1 = number(lambda)});
    const InnerSolution s = solve(problem, {.max_iterations = 5000, .tolerance = 1e-11, .accelerated = accelerated});
    expect_lasso_conditions(base, lambda, s, 1e-10);
  }
}

TEST(ProximalGradient, FindsTheConstrainedMinimumOfAQuadratic) {
  const QuadraticProblem base;
  const at::Tensor x = base.initial_outer(), free = base.solution(x);
  const double top = 0.5 * free.max().item<double>();
  const Constrained problem(base, {.lower = number(0), .upper = number(top)});
  const InnerSolution s = solve(problem, {.tolerance = 1e-12});
  expect_box_conditions(base, top, s, 1e-11);
  EXPECT_GT(gap(s.y, free.clamp(0, top)), 1e-3);  // which clamping the free solution does not give
}

TEST(ProximalGradient, SolvesTheKktSystemOfLinearEqualities) {
  const QuadraticProblem base;
  const at::Tensor x = base.initial_outer(), star = base.solution(x), A = Stream(1, "A").at(0).normal({2, 8}), H = base.A();
  const at::Tensor b = at::tensor({0.5, -1.0}, at::kDouble);
  // y = y* − H⁻¹Aᵀ(A H⁻¹ Aᵀ)⁻¹(A y* − b)
  const at::Tensor HiAt = at::linalg_solve(H, A.t());
  const at::Tensor expected = star - HiAt.mv(at::linalg_solve(A.mm(HiAt), A.mv(star) - b));
  const Constrained problem(base, {.equality = A, .equality_rhs = b});
  const InnerSolution s = solve(problem, {.tolerance = 1e-12});
  EXPECT_EQ(s.status, Status::kConverged) << s.message;
  EXPECT_LT(gap(s.y, expected), 1e-10);
  EXPECT_LT((A.mv(s.y) - b).norm().item<double>(), 1e-13);
}

TEST(ProximalGradient, IsPlainMinimisationWithoutConstraints) {
  const RidgeProblem problem;
  const InnerSolution s = solve(problem, {.tolerance = 1e-12});
  EXPECT_LT(gap(s.y, problem.solution(problem.initial_outer())), 1e-10);
  EXPECT_NEAR(s.stationarity, AutodiffOracle(problem).inner(problem.initial_outer(), s.y, {}).y.norm().item<double>(), 1e-14);
}

TEST(ProximalGradient, AccelerationTakesFewerSteps) {
  const QuadraticProblem base({.condition = 1e3});
  const Constrained problem(base, {.lower = number(0)});
  const InnerSolution fast = solve(problem, {.max_iterations = 20000, .tolerance = 1e-9});
  const InnerSolution plain = solve(problem, {.max_iterations = 20000, .tolerance = 1e-9, .accelerated = false});
  EXPECT_EQ(fast.status, Status::kConverged);
  EXPECT_EQ(plain.status, Status::kConverged);
  EXPECT_LT(2 * fast.steps, plain.steps);
  EXPECT_LT(gap(fast.y, plain.y), 1e-6);
}

TEST(ProximalGradient, FindsAStepSizeItselfAndDescendsNonconvexLosses) {
  const MlpProblem base;
  const at::Tensor x = base.initial_outer();
  const Constrained problem(base, {.lower = number(-0.4), .upper = number(0.4)});
  // A step a hundred times too long is halved until it descends.
  const InnerSolution s = solve(problem, {.lr = 100.0, .max_iterations = 3000, .tolerance = 1e-7});
  EXPECT_EQ(s.status, Status::kConverged) << s.message;
  EXPECT_LT(s.step_size.item<double>(), 100.0);
  EXPECT_LE(s.y.abs().max().item<double>(), 0.4);
  EXPECT_LT(s.loss, base.inner_loss(x, problem.initial_inner(x, 0).clamp(-0.4, 0.4), {}).item<double>());
}

TEST(ProximalGradient, TakesNoStepFromTheSolution) {
  const RidgeProblem base;
  const Constrained problem(base, {.l1 = number(0.05)});
  const InnerSolution s = solve(problem, {.max_iterations = 5000, .tolerance = 1e-10});
  const InnerSolution again =
      ProximalGradient({.tolerance = 1e-9}).solve(AutodiffOracle(problem), problem.initial_outer(), 0, {s.y}, {});
  EXPECT_EQ(again.steps, 0);
  EXPECT_TRUE(at::equal(again.y, s.y));
}

TEST(ProximalGradient, WorksInFloat) {
  const RidgeProblem base({.dtype = at::kFloat}), exact;
  const Constrained problem(base, {.l1 = number(0.05)}), reference(exact, {.l1 = number(0.05)});
  const InnerSolution s = solve(problem, {.tolerance = 1e-5}), r = solve(reference, {.tolerance = 1e-10});
  EXPECT_EQ(s.status, Status::kConverged) << s.message;
  EXPECT_EQ(s.y.scalar_type(), at::kFloat);
  EXPECT_LT(gap(s.y.to(at::kDouble), r.y), 1e-3);
}

TEST(ProximalGradient, SaysWhenNoPointSatisfiesTheConstraints) {
  const QuadraticProblem base;
  const Constrained problem(base, {.lower = number(0),
                                   .upper = number(1),
                                   .equality = at::ones({1, 8}, at::kDouble),
                                   .equality_rhs = at::full({1}, 20.0, at::kDouble)});
  const InnerSolution s = solve(problem);
  EXPECT_TRUE(failed(s.status));
  EXPECT_THAT(s.message, HasSubstr("constraints"));
}

TEST(ProximalGradient, OtherSolversRefuseConstraints) {
  const QuadraticProblem base;
  const Constrained problem(base, {.lower = number(0)});
  const at::Tensor x = problem.initial_outer(), y0 = problem.initial_inner(x, 0);
  const AutodiffOracle oracle(problem);
  EXPECT_THROW(Lbfgs({}).solve(oracle, x, 0, {y0}, {}), Error);
  EXPECT_THROW(ClosedForm({}).solve(oracle, x, 0, {y0}, {}), Error);
  const RuleSolver rule(std::make_unique<SgdRule>(SgdRuleOptions{}), {});
  EXPECT_THROW(rule.solve(oracle, x, 0, {y0}, {}), Error);
  for (const char* solver : {"rule", "lbfgs", "newton-cg", "closed-form"}) {
    Section section = Config::parse(fmt::format("solver = \"{}\"", solver), "c.toml").root();
    try {
      make_inner_solver(section, problem, x, 0, {});
      ADD_FAILURE() << solver;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("prox"));
    }
  }
  for (const char* solver : {"prox", "projected-gradient"}) {
    Section section = Config::parse(fmt::format("solver = \"{}\"\ntolerance = 1e-9", solver), "c.toml").root();
    EXPECT_EQ(make_inner_solver(section, problem, x, 0, {})->name(), solver);
    section.finish();
  }
}

}  // namespace
}  // namespace bilevel::proximal_gradient_test
