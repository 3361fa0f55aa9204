#include "bilevel/run/doctor.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <set>

#include "bilevel/core/config.h"
#include "bilevel/core/error.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/inner/registry.h"
#include "bilevel/linear/registry.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/function_problem.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::doctor_test {
namespace {

using testing::Contains;
using testing::Each;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

std::unique_ptr<InnerSolver> solver_of(const Problem& problem, const std::string& toml) {
  Section section = Config::parse(toml, "test").root();
  return make_inner_solver(section, problem, problem.initial_outer(), /*seed=*/0, {});
}

DoctorOptions generous() {
  DoctorOptions options;
  options.seconds = 500;  // nothing here depends on how fast the machine is
  options.trial_seconds = 500;
  return options;
}

Diagnosis diagnose_at_start(const Problem& problem, const std::string& inner, int64_t steps,
                            const DoctorOptions& options = generous(), const EstimatorSettings& configured = {}) {
  const AutodiffOracle oracle(problem);
  const auto solver = solver_of(problem, inner);
  DoctorSubject subject{oracle, *solver, problem.initial_outer(), {}};
  subject.inner_steps = steps;
  subject.configured = configured;
  return diagnose(subject, options);
}

const Trial* find(const Diagnosis& diagnosis, const std::string& name) {
  for (const Trial& trial : diagnosis.trials) {
    if (trial.name == name) return &trial;
  }
  return nullptr;
}

TEST(EstimatorsToTry, AreAllOfTheRegistriesAndCanBeMade) {
  const std::vector<EstimatorSettings> all = estimators_to_try(100, true);
  std::set<std::string> seen, texts;
  for (const EstimatorSettings& settings : all) {
    Section section = Config::parse(to_toml(settings), "test").root();
    std::string name, solver;
    section.read("estimator", name);
    EXPECT_NO_THROW(make_estimator(name, section)) << to_toml(settings);
    EXPECT_NO_THROW(section.finish()) << to_toml(settings);
    if (section.has("solver")) section.read("solver", solver);
    seen.insert(name);
    if (!solver.empty()) seen.insert(name + " " + solver);
    EXPECT_TRUE(texts.insert(to_toml(settings)).second) << "twice: " << to_toml(settings);
  }
  for (const EstimatorRow& row : estimators()) EXPECT_THAT(seen, Contains(row.name));
  for (const SolverRow& row : linear_solvers()) EXPECT_THAT(seen, Contains("implicit " + row.name));
  for (const char* line : {"iterations = 5\n", "iterations = 20\n", "iterations = 100\n"}) {
    EXPECT_THAT(texts, Contains(std::string("estimator = \"implicit\"\nsolver = \"cg\"\n") + line));
  }
  for (const char* line : {"", "steps = 10\n", "steps = 33\n", "memory = \"states\"\n", "memory = \"checkpoints\"\n"}) {
    EXPECT_THAT(texts, Contains(std::string("estimator = \"unrolled\"\n") + line));
  }
}

TEST(Doctor, MeasuresAgainstTheClosedFormWhereTheInnerProblemIsSolved) {
  const RidgeProblem problem;
  const Diagnosis d = diagnose_at_start(problem, "rule = \"sgd\"\nsteps = 150\n", 150);
  const at::Tensor truth = problem.hypergradient(problem.initial_outer());
  EXPECT_NEAR(d.reference.norm, truth.norm().item<double>(), 1e-8 * truth.norm().item<double>());
  EXPECT_EQ(d.reference.differentiates, "F");
  EXPECT_TRUE(d.reference.trusted);
  EXPECT_TRUE(d.reference.eigenvalues);
  const at::Tensor eigenvalues = at::linalg_eigvalsh(problem.hessian(problem.initial_outer()));
  EXPECT_NEAR(*d.reference.smallest, eigenvalues[0].item<double>(), 1e-10);
  EXPECT_NEAR(*d.reference.largest, eigenvalues[-1].item<double>(), 1e-10);
  EXPECT_THAT(d.traps, IsEmpty());

  for (const char* name : {"implicit dense", "implicit cg 20", "unrolled"}) {
    const Trial* trial = find(d, name);
    ASSERT_NE(trial, nullptr) << name;
    ASSERT_EQ(trial->outcome, Trial::Outcome::kDone) << trial->remark;
    EXPECT_LT(trial->error, 1e-3) << name;
    EXPECT_GT(trial->cosine, 0.999999) << name;
    EXPECT_NEAR(trial->norm_ratio, 1.0, 1e-3) << name;
    EXPECT_GT(trial->cost.gradients, 0);
    EXPECT_GT(trial->cost.peak_bytes, 0);
  }
  // A step size for the inverse Hessian is another number, and the doctor must see it.
  const Trial* identity = find(d, "identity");
  ASSERT_NE(identity, nullptr);
  EXPECT_GT(identity->error, 0.05);
  EXPECT_LT(find(d, "unrolled last 15")->error, find(d, "identity")->error);
  EXPECT_EQ(find(d, "unrolled \"states\""), nullptr) << "names have no quotes";
  EXPECT_NEAR(find(d, "unrolled states")->error, find(d, "unrolled")->error, 1e-12);

  ASSERT_TRUE(d.within_1 && d.within_5 && d.best);
  EXPECT_LE(d.trials[*d.within_1].error, 0.01);
  EXPECT_LE(d.trials[*d.within_5].seconds, 1.15 * d.trials[*d.within_1].seconds);
  for (const Trial& trial : d.trials) {
    if (trial.outcome != Trial::Outcome::kDone) continue;
    EXPECT_GE(trial.error, d.trials[*d.best].error);
    const bool good = trial.error <= 0.01 && trial.grade != Grade::kBad;
    EXPECT_TRUE(!good || 1.15 * trial.seconds >= d.trials[*d.within_1].seconds) << trial.name;
  }
  EXPECT_THAT(d.advice, HasSubstr(d.trials[*d.within_1].name));
}

TEST(Doctor, SaysThatTheInnerSolveStopsTooEarly) {
  const RidgeProblem problem;
  const Diagnosis d = diagnose_at_start(problem, "rule = \"sgd\"\nsteps = 3\n", 3);
  ASSERT_TRUE(d.reference.stopping_error.has_value());
  EXPECT_GT(*d.reference.stopping_error, 0.01);
  EXPECT_THAT(d.traps, Contains(HasSubstr("Far from stationary")));
  // The reference is that of the solution all the same.
  const at::Tensor truth = problem.hypergradient(problem.initial_outer());
  EXPECT_NEAR(d.reference.norm, truth.norm().item<double>(), 1e-8 * truth.norm().item<double>());
  // With everything exact but y, the dense estimate is off by just that.
  EXPECT_NEAR(find(d, "implicit dense")->error, *d.reference.stopping_error, 1e-9);
  // What to take is then judged at the y that was reached.
  EXPECT_THAT(d.advice, HasSubstr("Solve the inner problem further first"));
  EXPECT_LT(*find(d, "implicit dense")->error_there, 1e-9);
  EXPECT_GT(*find(d, "identity")->error_there, 0.05);
  ASSERT_TRUE(d.within_1.has_value());
  EXPECT_EQ(d.trials[*d.within_1].differentiates, "F");
  EXPECT_LE(*d.trials[*d.within_1].error_there, 0.01);
}

TEST(Doctor, WarnsOfIllConditioning) {
  const QuadraticProblem problem({.condition = 1e5});
  const Diagnosis d = diagnose_at_start(problem, "solver = \"lbfgs\"\ntolerance = 1e-10\nsteps = 200\n", 0);
  EXPECT_NEAR(*d.reference.largest / *d.reference.smallest, 1e5, 10);
  EXPECT_THAT(d.traps, Contains(HasSubstr("Ill-conditioned")));
  const at::Tensor truth = problem.hypergradient(problem.initial_outer());
  EXPECT_NEAR(d.reference.norm, truth.norm().item<double>(), 1e-3 * truth.norm().item<double>());
  EXPECT_EQ(find(d, "unrolled")->outcome, Trial::Outcome::kNotApplicable) << "L-BFGS has no steps to unroll";
  EXPECT_THAT(find(d, "unrolled")->remark, HasSubstr("lbfgs"));
}

/// g = ½‖(y₀ − y₁) − x‖², nothing says where y₀ + y₁ is;  f = ½(y₀ − y₁ − 2)² + x.
FunctionProblem singular() {
  FunctionProblemOptions options;
  options.inner_loss = [](const at::Tensor& x, const at::Tensor& y) { return 0.5 * (y[0] - y[1] - x[0]).square(); };
  options.outer_loss = [](const at::Tensor& x, const at::Tensor& y) { return 0.5 * (y[0] - y[1] - 2.0).square() + x[0]; };
  options.x0 = at::full({1}, 0.5, at::kDouble);
  options.y0 = at::zeros({2}, at::kDouble);
  return FunctionProblem(std::move(options));
}

TEST(Doctor, FindsItsReferenceAlsoWhereTheHessianIsSingular) {
  const Diagnosis d = diagnose_at_start(singular(), "rule = \"sgd\"\nsteps = 60\n", 60);
  EXPECT_EQ(d.reference.differentiates, "F");
  EXPECT_NEAR(d.reference.norm, 0.5, 1e-8);  // F = ½(x − 2)² + x
  EXPECT_NEAR(d.reference.direct_norm, 1.0, 1e-12);
  EXPECT_THAT(d.traps, Contains(HasSubstr("Singular")));
  EXPECT_THAT(d.traps, Each(Not(HasSubstr("Ill-conditioned"))));
  EXPECT_LT(find(d, "implicit cg 5")->error, 1e-6);
}

TEST(Doctor, UnrollsForItsReferenceWhereTheHessianIsIndefinite) {
  const MlpProblem problem;
  const Diagnosis d = diagnose_at_start(problem, "rule = \"sgd\"\nlr = 0.05\nsteps = 5\n", 5);
  EXPECT_LT(*d.reference.smallest, 0);
  EXPECT_EQ(d.reference.differentiates, "F_T");
  EXPECT_THAT(d.reference.how, HasSubstr("unrolled"));
  EXPECT_THAT(d.traps, Contains(HasSubstr("Indefinite")));
  EXPECT_LT(find(d, "unrolled")->error, 1e-12);
  EXPECT_EQ(find(d, "implicit cg 20")->grade, Grade::kBad);
  EXPECT_GT(find(d, "implicit dense")->error, 1e-3) << "F is another function than F_T";
}

TEST(Doctor, ListsWhatDoesNotApplyWithTheObjection) {
  const RidgeProblem base;
  const LearnedRuleProblem problem(base, 0.1);
  const Diagnosis d = diagnose_at_start(problem, "rule = \"sgd\"\nsteps = 30\n", 30);
  EXPECT_EQ(d.reference.differentiates, "F_T");
  const Trial* implicit = find(d, "implicit dense");
  ASSERT_NE(implicit, nullptr);
  EXPECT_EQ(implicit->outcome, Trial::Outcome::kNotApplicable);
  EXPECT_THAT(implicit->remark, HasSubstr("\"lr\""));
  EXPECT_LT(find(d, "unrolled")->error, 1e-12);
  ASSERT_TRUE(d.within_1.has_value());
}

TEST(Doctor, AveragesOverSeveralInnerProblems) {
  const SinusoidMamlProblem problem({.proximity = 2.0});
  const Diagnosis d = diagnose_at_start(problem, "rule = \"sgd\"\nlr = 0.05\nsteps = 4\n", 4);
  const AutodiffOracle oracle(problem);
  EXPECT_EQ(d.reference.differentiates, "F_T");  // y₀ = x
  EXPECT_LT(find(d, "unrolled")->error, 1e-12);
  EXPECT_LT(find(d, "unrolled checkpoints")->error, 1e-12);
}

TEST(Doctor, FindsFloatAgainstTheSameProblemInDouble) {
  const RidgeProblem precise, problem({.dtype = at::kFloat});
  const AutodiffOracle oracle(problem), exact(precise);
  const auto solver = solver_of(problem, "rule = \"sgd\"\nsteps = 150\n"),
             twin = solver_of(precise, "rule = \"sgd\"\nsteps = 150\n");
  DoctorSubject subject{oracle, *solver, problem.initial_outer(), {}};
  subject.inner_steps = 150;
  EXPECT_THROW(diagnose(subject, generous()), Error);
  subject.precise = &exact;
  subject.precise_solver = twin.get();
  const Diagnosis d = diagnose(subject, generous());
  const at::Tensor truth = precise.hypergradient(problem.initial_outer().to(at::kDouble));
  EXPECT_NEAR(d.reference.norm, truth.norm().item<double>(), 1e-6 * truth.norm().item<double>());
  const Trial* dense = find(d, "implicit dense");
  EXPECT_LT(dense->error, 1e-3);
  EXPECT_GT(dense->error, 1e-10) << "it is in float";
}

TEST(Doctor, TriesWhatTheConfigurationHasFirstAndJudgesIt) {
  const RidgeProblem problem;
  const EstimatorSettings own = {{"estimator", "\"implicit\""}, {"solver", "\"cg\""}, {"iterations", "1"}};
  const Diagnosis d = diagnose_at_start(problem, "rule = \"sgd\"\nsteps = 150\n", 150, generous(), own);
  EXPECT_TRUE(d.trials.front().configured);
  EXPECT_EQ(d.trials.front().name, "implicit cg 1");
  EXPECT_GT(d.trials.front().error, 0.01) << "one product is not enough";
  EXPECT_THAT(d.advice, HasSubstr("What the configuration has, implicit cg 1"));
  int64_t times = 0;
  for (const Trial& trial : d.trials) times += trial.configured ? 1 : 0;
  EXPECT_EQ(times, 1);
  // One that is in the ladder anyway is tried once.
  const EstimatorSettings known = {{"estimator", "\"implicit\""}, {"solver", "\"cg\""}, {"iterations", "20"}};
  const Diagnosis again = diagnose_at_start(problem, "rule = \"sgd\"\nsteps = 150\n", 150, generous(), known);
  EXPECT_EQ(again.trials.size(), d.trials.size() - 1);
}

TEST(Doctor, CutsOffWhatTakesTooLongOrTooMuch) {
  const RidgeProblem problem;
  DoctorOptions hurried = generous();
  hurried.trial_seconds = 1e-9;
  const Diagnosis d = diagnose_at_start(problem, "rule = \"sgd\"\nsteps = 50\n", 50, hurried);
  EXPECT_FALSE(d.best.has_value());
  EXPECT_EQ(d.advice, "No trial can be recommended.");
  EXPECT_EQ(find(d, "unrolled last 5")->outcome, Trial::Outcome::kCutOff);
  EXPECT_EQ(find(d, "unrolled")->outcome, Trial::Outcome::kLeftOut) << "a cheaper one was cut off";
  EXPECT_FALSE(d.reference.how.empty()) << "the reference has a time of its own";

  DoctorOptions cramped = generous();
  cramped.bytes = 30000;
  const Diagnosis small = diagnose_at_start(problem, "rule = \"sgd\"\nsteps = 150\n", 150, cramped);
  EXPECT_EQ(find(small, "unrolled")->outcome, Trial::Outcome::kCutOff);
  EXPECT_THAT(find(small, "unrolled")->remark, HasSubstr("held"));
  EXPECT_TRUE(find(small, "unrolled")->out_of_memory);
  EXPECT_EQ(find(small, "unrolled checkpoints")->outcome, Trial::Outcome::kDone) << "which needs less";
}

TEST(Doctor, RefusesSenselessOptions) {
  DoctorOptions options;
  options.seconds = 0;
  EXPECT_THROW(diagnose_at_start(RidgeProblem(), "rule = \"sgd\"\nsteps = 5\n", 5, options), Error);
}

}  // namespace
}  // namespace bilevel::doctor_test
