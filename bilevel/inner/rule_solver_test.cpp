#include "bilevel/inner/rule_solver.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/registry.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::rule_solver_test {
namespace {

using testing::HasSubstr;

InnerSolution solve(const Problem& problem, const InnerSolver& solver, InnerStart start = {}) {
  const at::Tensor x = problem.initial_outer();
  if (!start.y.defined()) start.y = problem.initial_inner(x, 0);
  return solver.solve(AutodiffOracle(problem), x, 0, start, {});
}

RuleSolver gd(std::optional<double> lr, int64_t steps, double tolerance = 0) {
  return RuleSolver(std::make_unique<SgdRule>(SgdRuleOptions{}), {.lr = lr, .steps = steps, .tolerance = tolerance});
}

double gap(const at::Tensor& a, const at::Tensor& b) { return (a - b).norm().item<double>() / b.norm().item<double>(); }

TEST(RuleSolver, GradientDescentFollowsItsClosedFormOnAQuadratic) {
  // y_T − y* = (I − η A)ᵀ(y₀ − y*)
  const QuadraticProblem problem;
  const at::Tensor x = problem.initial_outer(), y0 = problem.initial_inner(x, 0), star = problem.solution(x);
  const at::Tensor M = at::eye(y0.size(0), at::kDouble) - 0.7 * problem.A();
  const auto solution = solve(problem, gd(0.7, 9));
  EXPECT_LT(gap(solution.y, star + at::linalg_matrix_power(M, 9).mv(y0 - star)), 1e-13);
  EXPECT_LT(gap(solution.previous, star + at::linalg_matrix_power(M, 8).mv(y0 - star)), 1e-13);
  EXPECT_EQ(solution.steps, 9);
  EXPECT_EQ(solution.status, Status::kIterationLimit);
  EXPECT_NEAR(solution.stationarity, problem.A().mv(solution.y - star).norm().item<double>(), 1e-13);
  EXPECT_NEAR(solution.initial_stationarity, problem.A().mv(y0 - star).norm().item<double>(), 1e-13);
  EXPECT_NEAR(solution.loss, problem.inner_loss(x, solution.y, {}).item<double>(), 1e-14);
  EXPECT_EQ(solution.step_size.item<double>(), 0.7);
}

TEST(RuleSolver, TakesNoGradientAtTheEndWhereNobodyLooks) {
  const QuadraticProblem problem;
  const at::Tensor x = problem.initial_outer(), y0 = problem.initial_inner(x, 0);
  for (const bool keep : {false, true}) {
    const AutodiffOracle autodiff(problem);
    const CountedOracle looking(autodiff), blind(autodiff);
    const auto solver = gd(0.7, 9);
    const auto whole = solver.solve(looking, x, 0, {.y = y0}, {.keep = keep});
    const auto brief = solver.solve(blind, x, 0, {.y = y0}, {.keep = keep, .look_at_end = false});
    EXPECT_EQ(looking.cost().gradients, 10);
    EXPECT_EQ(blind.cost().gradients, 9);
    EXPECT_TRUE(at::equal(brief.y, whole.y));
    const auto one_less = solve(problem, gd(0.7, 8));
    EXPECT_EQ(brief.stationarity, one_less.stationarity);
    EXPECT_EQ(brief.loss, one_less.loss);
    EXPECT_THAT(brief.message, HasSubstr("before the last"));
  }
  // Divergence is seen all the same, one step before the end.
  EXPECT_EQ(gd(3.0, 40).solve(AutodiffOracle(problem), x, 0, {.y = y0}, {.look_at_end = false}).status, Status::kDiverged);
  // A tolerance needs the look.
  const auto tolerant = gd(0.7, 9, 1e-12).solve(AutodiffOracle(problem), x, 0, {.y = y0}, {.look_at_end = false});
  EXPECT_EQ(tolerant.stationarity, solve(problem, gd(0.7, 9)).stationarity);
}

TEST(RuleSolver, StopsAtTheFirstPointWithinTheTolerance) {
  const RidgeProblem problem;
  const auto solution = solve(problem, gd(std::nullopt, 100000, 1e-9));
  EXPECT_EQ(solution.status, Status::kConverged);
  EXPECT_LE(solution.stationarity, 1e-9);
  EXPECT_LT(gap(solution.y, problem.solution(problem.initial_outer())), 1e-8);
  const auto one_less = solve(problem, gd(std::nullopt, solution.steps - 1, 1e-9));
  EXPECT_EQ(one_less.status, Status::kIterationLimit);
  EXPECT_GT(one_less.stationarity, 1e-9);
  EXPECT_TRUE(at::equal(one_less.y, solution.previous));
}

TEST(RuleSolver, WorksInFloat) {
  const RidgeProblem problem({.dtype = at::kFloat}), reference;
  for (const int64_t batch : {0, 10}) {
    const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{.momentum = 0.5}), {.steps = 500},
                            batch == 0 ? BatchPlan::full() : BatchPlan::shuffled(30, batch, Stream(5, "batches")));
    const auto solution = solve(problem, solver);
    EXPECT_EQ(solution.y.scalar_type(), at::kFloat);
    EXPECT_EQ(solution.status, Status::kIterationLimit);
    // Minibatches settle in a neighbourhood of the solution only.
    EXPECT_LT(gap(solution.y.to(at::kDouble), reference.solution(reference.initial_outer())), batch == 0 ? 1e-4 : 1.0);
  }
}

TEST(RuleSolver, ReportsAStartThatIsNotFinite) {
  const RidgeProblem problem;
  const auto solution = solve(problem, gd(0.1, 5), {.y = at::full({6}, std::nan(""), at::kDouble)});
  EXPECT_EQ(solution.status, Status::kNonFinite);
  EXPECT_EQ(solve(problem, gd(std::nullopt, 5), {.y = at::full({6}, std::nan(""), at::kDouble)}).status, Status::kNonFinite);
}

TEST(RuleSolver, EveryRuleReachesTheSolution) {
  const RidgeProblem problem;
  const at::Tensor star = problem.solution(problem.initial_outer());
  const auto reach = [&](std::unique_ptr<UpdateRule> rule, std::optional<double> lr) {
    return gap(solve(problem, RuleSolver(std::move(rule), {.lr = lr, .steps = 4000})).y, star);
  };
  EXPECT_LT(reach(std::make_unique<SgdRule>(SgdRuleOptions{.momentum = 0.9}), std::nullopt), 1e-9);
  EXPECT_LT(reach(std::make_unique<SgdRule>(SgdRuleOptions{.momentum = 0.9, .nesterov = true}), std::nullopt), 1e-9);
  EXPECT_LT(reach(std::make_unique<AdamRule>(AdamRuleOptions{}), std::nullopt), 1e-6);
}

TEST(RuleSolver, StopsWhereTheGradientWithItsCoupledWeightDecayIsZero) {
  const QuadraticProblem problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{.weight_decay = 0.3}), {.steps = 2000, .tolerance = 1e-12});
  const auto solution = solve(problem, solver);
  const at::Tensor eye = at::eye(problem.A().size(0), at::kDouble);
  EXPECT_EQ(solution.status, Status::kConverged);
  EXPECT_LT(gap(solution.y, at::linalg_solve(problem.A() + 0.3 * eye, problem.A().mv(problem.solution(x)))), 1e-10);
  // 1/(L + w), for the largest eigenvalue of A is 1; a bound on it leaves the step a little shorter.
  EXPECT_LE(solution.step_size.item<double>(), 1 / 1.3 + 1e-12);
  EXPECT_GE(solution.step_size.item<double>(), 0.98 / 1.3);
  EXPECT_EQ(solver.coupled_weight_decay(), 0.3);
}

TEST(RuleSolver, ReportsAStepPastTheLimit) {
  const QuadraticProblem problem;  // L = 1
  EXPECT_EQ(solve(problem, gd(1.9, 400)).status, Status::kIterationLimit);
  const auto mild = solve(problem, gd(2.05, 400));
  EXPECT_EQ(mild.status, Status::kDiverged);
  EXPECT_THAT(mild.message, HasSubstr("diverged"));
  EXPECT_EQ(solve(problem, gd(50.0, 2000)).status, Status::kNonFinite);
  const RuleSolver momentum(std::make_unique<SgdRule>(SgdRuleOptions{.momentum = 0.9}), {.lr = 4.0, .steps = 400});
  EXPECT_EQ(solve(problem, momentum).status, Status::kDiverged);  // past 2(1 + μ)/L = 3.8
  // Just past the limit, while the other directions still settle: only the message can tell.
  const auto slight = solve(problem, gd(2.01, 30));
  EXPECT_LT(slight.stationarity, 10 * slight.initial_stationarity);
  EXPECT_THAT(slight.message, testing::AnyOf(HasSubstr("2/L"), HasSubstr("diverged")));
  EXPECT_THAT(solve(problem, gd(1.99, 30)).message, testing::Not(HasSubstr("2/L")));
}

TEST(RuleSolver, ASolveFromTheSolutionItselfIsNoDivergence) {
  const RidgeProblem problem;
  const at::Tensor star = problem.solution(problem.initial_outer());
  for (const double lr : {0.05, 0.3}) EXPECT_FALSE(failed(solve(problem, gd(lr, 200), {.y = star}).status));
  const RuleSolver adam(std::make_unique<AdamRule>(AdamRuleOptions{}), {.steps = 50});
  EXPECT_FALSE(failed(solve(problem, adam, {.y = star}).status));
}

TEST(RuleSolver, TheAutomaticStepIsSafeFromAWarmStartWhereTheCurvatureIsSmaller) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer();
  const double L = at::linalg_eigvalsh(problem.hessian(x, at::zeros({5}, at::kDouble))).max().item<double>();
  const auto solution = solve(problem, gd(std::nullopt, 10), {.y = at::full({5}, 30.0, at::kDouble)});
  EXPECT_NEAR(solution.step_size.item<double>() * L, 1.0, 1e-9);
  EXPECT_NEAR(gd(std::nullopt, 10).step_size(problem, x).item<double>() * L, 1.0, 1e-9);
}

TEST(RuleSolver, TakesTheHyperparametersThatXDetermines) {
  const RidgeProblem base;
  const LearnedRuleProblem problem(base, 0.2);  // lr/(1 + t/10)
  const auto solution = solve(problem, gd(0.01, 3));
  at::Tensor y = base.initial_inner(base.initial_outer(), 0);
  const AutodiffOracle oracle(base);
  for (int t = 0; t < 3; ++t) y = y - 0.2 / (1 + t / 10.0) * oracle.inner(base.initial_outer(), y, {}).y;
  EXPECT_LT((solution.y - y).abs().max().item<double>(), 1e-14);
  EXPECT_NEAR(solution.step_size.item<double>(), 0.2 / 1.2, 1e-15);
  EXPECT_NEAR(gd(0.01, 3).step_size(problem, problem.initial_outer()).item<double>(), 0.2 / 1.2, 1e-15);
}

TEST(RuleSolver, DerivativesOfTheHyperparametersByX) {
  const RidgeProblem base;
  const LearnedRuleProblem problem(base, 0.2, 0.5);
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{.momentum = 0.5, .learned = {"lr", "momentum"}}), {});
  const AutodiffOracle oracle(problem);
  const SolveContext context{oracle, x, 0, 0, solver.rule().default_h(x)};
  Draw draw = Stream(3, "h").at(0);
  const at::Tensor u = draw.normal(x.sizes());
  Tensors bars;
  for (int i = 0; i < 4; ++i) bars.push_back(draw.normal({}));
  const auto at = [&](double by) { return solver.hyperparameters({oracle, x + by * u, 0, 0, context.h}, 3); };
  const Tensors pushed = solver.hyperparameters_jvp(context, 3, u), plus = at(1e-6), minus = at(-1e-6);
  double along = 0, moved = 0;
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_NEAR(pushed[i].item<double>(), (plus[i] - minus[i]).item<double>() / 2e-6, 1e-8);
    along += (bars[i] * pushed[i]).item<double>();
    moved += pushed[i].abs().item<double>();
  }
  EXPECT_GT(moved, 0.1);
  EXPECT_NEAR((solver.hyperparameters_vjp(problem, x, 3, bars) * u).sum().item<double>(), along, 1e-13);
}

TEST(RuleSolver, RefusesHyperparametersThatTheRuleDoesNotExpect) {
  const RidgeProblem base;
  const LearnedRuleProblem problem(base, 0.2, 0.5);
  EXPECT_THROW(solve(problem, gd(0.1, 3)), Error);  // momentum, and no buffer
  EXPECT_THROW(solve(problem, RuleSolver(std::make_unique<SgdRule>(SgdRuleOptions{.momentum = 0.5}), {})), Error);
  EXPECT_NO_THROW(
      solve(problem, RuleSolver(std::make_unique<SgdRule>(SgdRuleOptions{.learned = {"lr", "momentum"}}), {.steps = 3})));
}

TEST(RuleSolver, MinibatchesGoOnWhereTheLastSolveEndedAndReplayExactly) {
  const RidgeProblem problem;
  const auto make = [](int64_t steps, bool carry) {
    return RuleSolver(std::make_unique<SgdRule>(SgdRuleOptions{.momentum = 0.9}),
                      {.lr = 0.02, .steps = steps, .carry_state = carry}, BatchPlan::shuffled(30, 7, Stream(5, "batches")));
  };
  const auto whole = solve(problem, make(20, true));
  const auto half = solve(problem, make(10, true));
  const InnerStart on{.y = half.y, .state = half.state, .state_steps = half.state_steps, .first_step = 10};
  EXPECT_TRUE(at::equal(solve(problem, make(10, true), on).y, whole.y));
  EXPECT_TRUE(at::equal(solve(problem, make(20, true)).y, whole.y));
  EXPECT_FALSE(at::equal(solve(problem, make(10, false), on).y, whole.y));  // a fresh buffer
  InnerStart same_data = on;
  same_data.first_step = 0;
  EXPECT_FALSE(at::equal(solve(problem, make(10, true), same_data).y, whole.y));

  // By hand: the first two steps.
  const at::Tensor x = problem.initial_outer();
  const AutodiffOracle oracle(problem);
  const BatchPlan plan = BatchPlan::shuffled(30, 7, Stream(5, "batches"));
  at::Tensor y = problem.initial_inner(x, 0), b = at::zeros_like(y);
  for (int64_t t = 0; t < 2; ++t) {
    const at::Tensor g = oracle.inner(x, y, {t, 0, plan.samples(t)}).y;
    b = t == 0 ? g : 0.9 * b + g;
    y = y - 0.02 * b;
  }
  EXPECT_LT((solve(problem, make(2, false)).y - y).abs().max().item<double>(), 1e-15);
}

TEST(RuleSolver, MeasuresStationarityOnAllSamplesEvenWithMinibatches) {
  const RidgeProblem problem;
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{}),
                          {.lr = 0.05, .steps = 500, .tolerance = 0.05, .check_every = 5},
                          BatchPlan::shuffled(30, 10, Stream(5, "batches")));
  const auto solution = solve(problem, solver);
  EXPECT_EQ(solution.status, Status::kConverged);
  EXPECT_EQ(solution.steps % 5, 0);
  EXPECT_GT(solution.steps, 0);
  EXPECT_NEAR(solution.stationarity, AutodiffOracle(problem).inner(x, solution.y, {}).y.norm().item<double>(), 1e-14);
}

TEST(RuleSolver, ABriefSolveOnMinibatchesIsJudgedByTheNextOne) {
  const RidgeProblem problem;
  const at::Tensor x = problem.initial_outer();
  const AutodiffOracle oracle(problem);
  for (const int64_t steps : {3, 10}) {
    const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{}), {.lr = 0.05, .steps = steps, .check_every = 10},
                            BatchPlan::shuffled(30, 10, Stream(5, "batches")));
    const auto solution = solve(problem, solver);
    const double all = oracle.inner(x, solution.y, {}).y.norm().item<double>();
    const double next = oracle.inner(x, solution.y, solver.batch(steps, 0)).y.norm().item<double>();
    ASSERT_GT(std::abs(all - next), 1e-3 * all);
    EXPECT_NEAR(solution.stationarity, steps < 10 ? next : all, 1e-14);
  }
}

TEST(RuleSolver, NoStepsLeaveTheStart) {
  const RidgeProblem problem;
  const auto solution = solve(problem, gd(0.1, 0));
  EXPECT_TRUE(at::equal(solution.y, problem.initial_inner(problem.initial_outer(), 0)));
  EXPECT_TRUE(at::equal(solution.previous, solution.y));
  EXPECT_EQ(solution.stationarity, solution.initial_stationarity);
}

TEST(InnerRegistry, ReadsTheInnerTable) {
  const RidgeProblem problem;
  const at::Tensor x = problem.initial_outer();
  const auto make = [&](const std::string& text) {
    Config config = Config::parse("[inner]\n" + text, "test.toml");
    Section section = config.root().section("inner");
    auto solver = make_inner_solver(section, problem, x, 0, {});
    section.finish();
    return std::make_pair(std::move(solver), config.text());
  };
  auto [solver, text] = make("rule = \"adam\"\nbetas = [0.5, 0.6]\namsgrad = true\nlr = 0.3\nsteps = 7\n");
  EXPECT_EQ(solver->name(), "adam");
  const auto& rule_solver = dynamic_cast<const RuleSolver&>(*solver);
  EXPECT_EQ(rule_solver.options().steps, 7);
  EXPECT_EQ(rule_solver.options().lr, 0.3);
  EXPECT_EQ(rule_solver.rule().slots(), 3);
  EXPECT_THAT(text, HasSubstr("betas = [0.5, 0.6]"));

  std::tie(solver, text) = make("");
  EXPECT_EQ(solver->name(), "sgd");
  EXPECT_THAT(text, HasSubstr("lr = \"auto\""));
  EXPECT_EQ(make(text.substr(text.find('\n') + 1)).second, text);

  std::tie(solver, text) = make("solver = \"lbfgs\"\n");
  EXPECT_EQ(solver->name(), "lbfgs");

  const auto message = [&](const std::string& bad) -> std::string {
    try {
      make(bad);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message("rule = \"adm\""), HasSubstr("Did you mean \"adam\"?"));
  EXPECT_THAT(message("lr = \"fast\""), HasSubstr("test.toml:2"));
  EXPECT_THAT(message("steps = -1"), HasSubstr("steps = -1"));
  EXPECT_THAT(message("momentun = 0.9"), HasSubstr("momentum"));
  EXPECT_THAT(message("solver = \"lbfgs\"\nrule = \"sgd\""), HasSubstr("rule"));
  EXPECT_THAT(message("batch = 31"), HasSubstr("30 samples"));
  EXPECT_THAT(message("rule = \"adam\"\nbetas = [0.9]"), HasSubstr("expected two numbers"));

  const LearnedRuleProblem learned(problem, 0.2, 0.5);
  Config config = Config::parse("[inner]\nlr = 0.1\n", "test.toml");
  Section section = config.root().section("inner");
  EXPECT_THROW(make_inner_solver(section, learned, learned.initial_outer(), 0, {}), Error);
  Config free = Config::parse("[inner]\n", "test.toml");
  Section free_section = free.root().section("inner");
  const auto with_momentum = make_inner_solver(free_section, learned, learned.initial_outer(), 0, {});
  EXPECT_EQ(dynamic_cast<const RuleSolver&>(*with_momentum).rule().slots(), 1);
}

}  // namespace
}  // namespace bilevel::rule_solver_test
