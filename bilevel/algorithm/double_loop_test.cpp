#include "bilevel/algorithm/double_loop.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/core/guards.h"
#include "bilevel/core/stream.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/inner/registry.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/outer/registry.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel {
namespace {

using testing::HasSubstr;

/// A double loop from a configuration's [inner], [hypergradient] and [outer], over a counted autodiff oracle.
struct Loop {
  Loop(const Problem& problem, const std::string& toml) : first_order(problem), oracle(first_order) {
    const Config config = Config::parse(toml, "test.toml");
    Section root = config.root();
    Section inner = root.section("inner"), hypergradient = root.section("hypergradient"), outer = root.section("outer");
    DoubleLoopOptions options;
    read(inner, options);
    options.warm_q = options.start == Start::kWarm;
    hypergradient.read("variance_samples", options.variance_samples);
    std::string estimator, rule;
    hypergradient.read("estimator", estimator);
    outer.read("rule", rule);
    std::shared_ptr<const InnerSolver> solver = make_inner_solver(inner, problem, problem.initial_outer(), 0, {});
    std::shared_ptr<const Estimator> made = make_estimator(estimator, hypergradient);
    std::shared_ptr<const OuterOptimizer> optimizer = make_outer_optimizer(rule, outer);
    algorithm = std::make_unique<DoubleLoop>(oracle, solver, made, optimizer, options);
  }
  const DoubleLoop* operator->() const { return algorithm.get(); }

  AutodiffOracle first_order;
  CountedOracle oracle;
  std::unique_ptr<DoubleLoop> algorithm;
};

constexpr const char* kExact = R"(
inner = { rule = "sgd", lr = 1.0, steps = 400 }
hypergradient = { estimator = "implicit", solver = "dense" }
outer = { rule = "sgd", lr = 0.5 }
)";

void expect_near(const at::Tensor& actual, const at::Tensor& expected, double relative) {
  const double error = (actual - expected).norm().item<double>();
  EXPECT_LE(error, relative * expected.norm().item<double>()) << actual << "\nexpected\n" << expected;
}

TEST(DoubleLoop, MovesXAlongTheClosedFormHypergradient) {
  const QuadraticProblem problem;
  const Loop loop(problem, kExact);
  State state = loop->init();
  const at::Tensor x0 = state.tensor("x").clone();
  const Record record = loop->step(state, 1);
  expect_near(state.tensor("x") - x0, -0.5 * problem.hypergradient(x0), 1e-9);
  expect_near(state.tensor("y"), problem.solution(x0), 1e-9);
  EXPECT_EQ(state.integer("step"), 1);
  EXPECT_EQ(record.step, 0);
  EXPECT_NEAR(record.hypergradient_norm, problem.hypergradient(x0).norm().item<double>(), 1e-8);
  EXPECT_NEAR(record.outer_loss, problem.outer_loss(x0, problem.solution(x0), {}).item<double>(), 1e-9);
  EXPECT_NEAR(record.inner_loss, problem.inner_loss(x0, problem.solution(x0), {}).item<double>(), 1e-9);
  EXPECT_LT(record.stationarity, 1e-8);
  EXPECT_GE(record.cost.gradients, 400);
}

TEST(DoubleLoop, EndsWhereTheClosedFormHypergradientVanishes) {
  const QuadraticProblem problem;
  const Loop loop(problem, R"(
inner = { rule = "sgd", lr = 1.0, steps = 100 }
hypergradient = { estimator = "implicit", solver = "dense" }
outer = { rule = "adam", lr = 0.1 }
)");
  State state = loop->init();
  const double at_start = problem.hypergradient(state.tensor("x")).norm().item<double>();
  const Record record = loop->step(state, 400);
  EXPECT_EQ(record.step, 0) << "the point that the first update started from";
  EXPECT_LT(problem.hypergradient(state.tensor("x")).norm().item<double>(), 1e-3 * at_start);
}

TEST(DoubleLoop, WarmStartsGoOnFromTheLastYAndColdStartsFromTheFirst) {
  const QuadraticProblem problem;
  for (const char* start : {"warm", "cold"}) {
    const Loop loop(problem, fmt::format(R"(
inner = {{ rule = "sgd", lr = 0.5, steps = 3, start = "{}" }}
hypergradient = {{ estimator = "unrolled" }}
outer = {{ rule = "sgd", lr = 0.1 }}
)",
                                         start));
    State state = loop->init();
    at::Tensor y = state.tensor("y").clone();
    for (int k = 0; k < 3; ++k) {
      const at::Tensor x = state.tensor("x").clone();
      if (start == std::string("cold")) y = problem.initial_inner(x, 0);
      const at::Tensor target = problem.solution(x);
      // y − y* shrinks by (I − lr A) in each step of gradient descent on the quadratic.
      for (int t = 0; t < 3; ++t) y = y - 0.5 * problem.A().mv(y - target);
      loop->step(state, 1);
      expect_near(state.tensor("y"), y, 1e-12);
    }
  }
}

TEST(DoubleLoop, AveragesOverInnerProblems) {
  const SinusoidMamlProblem problem;
  const Loop loop(problem, R"(
inner = { rule = "sgd", lr = 0.01, steps = 2, start = "cold" }
hypergradient = { estimator = "unrolled" }
outer = { rule = "sgd", lr = 0.1 }
)");
  const State state = loop->init();
  const Hypergradient h = loop->hypergradient(state);
  const auto mean_loss = [&](const at::Tensor& x) {
    State at_x = state;
    at_x.set("x", x);
    return loop->evaluate(at_x).outer_loss;
  };
  // Central differences of the mean F_T along a direction in which the slices differ.
  const at::Tensor x = state.tensor("x");
  const at::Tensor u = at::linspace(-1, 1, x.numel(), x.options());
  const double eps = 1e-5;
  const double difference = (mean_loss(x + eps * u) - mean_loss(x - eps * u)) / (2 * eps);
  EXPECT_NEAR(h.value.dot(u).item<double>(), difference, 1e-6 * std::abs(difference));
  double mean = 0;
  for (int64_t s = 0; s < 4; ++s) {
    Batch batch;
    batch.slice = s;
    State solved = state;
    loop->evaluate(solved);
    ASSERT_EQ(solved.tensor("y").dim(), 2);
    mean += problem.outer_loss(x, solved.tensor("y")[s], batch).item<double>() / 4;
  }
  EXPECT_NEAR(h.outer_loss, mean, 1e-12);
}

TEST(DoubleLoop, RefusesAWarmStartWhereTheStartDependsOnX) {
  const SinusoidMamlProblem problem;
  try {
    const Loop loop(problem, R"(
inner = { rule = "sgd", lr = 0.01, steps = 2 }
hypergradient = { estimator = "unrolled" }
outer = { rule = "sgd", lr = 0.1 }
)");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("start = \"cold\""));
  }
}

TEST(DoubleLoop, RefusesWhatTheEstimatorObjectsTo) {
  const QuadraticProblem problem;
  try {
    const Loop loop(problem, R"(
inner = { rule = "adamw", amsgrad = true, lr = 0.01, steps = 2 }
hypergradient = { estimator = "implicit" }
outer = { rule = "sgd", lr = 0.1 }
)");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("implicit"));
  }
}

/// A quadratic with a box around x, and a metric.
class Boxed final : public Problem {
 public:
  explicit Boxed(double upper) : upper_(upper) {}
  const Layout& outer_layout() const override { return base_.outer_layout(); }
  const Layout& inner_layout() const override { return base_.inner_layout(); }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return base_.inner_loss(x, y, b);
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return base_.outer_loss(x, y, b) * (poisoned ? std::numeric_limits<double>::quiet_NaN() : 1.0);
  }
  at::Tensor initial_outer() const override { return base_.initial_outer(); }
  at::Tensor initial_inner(const at::Tensor& x, int64_t slice) const override { return base_.initial_inner(x, slice); }
  std::vector<Constraint> outer_constraints() const override {
    return std::vector<Constraint>(outer_layout().parts().size(), Constraint::box(-upper_, upper_));
  }
  std::map<std::string, double> metrics(const at::Tensor& x, const at::Tensor& /*y*/) const override {
    ++measured;
    return {{"sum", x.sum().item<double>()}};
  }
  bool poisoned = false;
  mutable int measured = 0;

 private:
  QuadraticProblem base_;
  double upper_;
};

TEST(DoubleLoop, ProjectsEachStepOntoTheConstraints) {
  const QuadraticProblem free;
  const double size = free.initial_outer().abs().max().item<double>();
  const Boxed problem(size);
  const Loop loop(problem, kExact);
  State state = loop->init();
  const at::Tensor expected = (state.tensor("x") - 0.5 * free.hypergradient(state.tensor("x"))).clamp(-size, size);
  loop->step(state, 1);
  expect_near(state.tensor("x"), expected, 1e-9);
  const Boxed tight(0.1 * size);
  EXPECT_THROW(Loop(tight, kExact)->init(), Error) << "the start lies outside";
}

TEST(DoubleLoop, ReportsANonFiniteLossAndKeepsX) {
  Boxed problem(1e6);
  const Loop loop(problem, kExact);
  State state = loop->init();
  const at::Tensor x0 = state.tensor("x").clone();
  problem.poisoned = true;
  const Record record = loop->step(state, 1);
  EXPECT_EQ(record.status, Status::kNonFinite);
  EXPECT_EQ(record.grade, Grade::kBad);
  EXPECT_FALSE(record.message.empty());
  EXPECT_TRUE(at::equal(state.tensor("x"), x0));
}

TEST(DoubleLoop, HandsTheStatesDampingToTheLinearSolve) {
  const QuadraticProblem problem;
  const Loop loop(problem, kExact);
  State state = loop->init();
  state.set("damping", 0.3);
  const at::Tensor x = state.tensor("x");
  const at::Tensor y = problem.solution(x);
  const at::Tensor damped = problem.A() + 0.3 * at::eye(problem.A().size(0), x.options());
  const Hypergradient plain = loop->hypergradient(loop->init());
  // ∂y f = A q of the undamped solve; the damped q solves (A + δI) q = ∂y f.
  const at::Tensor q = at::linalg_solve(damped, problem.A().mv(plain.q));
  expect_near(loop->hypergradient(state).q, q, 1e-8);
}

/// x on the simplex:  g = ½‖y − B x‖²,  f = ½‖y − t‖² + ½ρ‖x‖², so that F = ½ xᵀM x − bᵀx + const with M = BᵀB + ρI, b = Bᵀt.
class Mixture final : public TestProblem {
 public:
  Mixture() {
    B_ = Stream(8, "mixture").at(0).normal({6, 4}).to(at::kDouble);
    t_ = B_.mv(at::tensor({0.4, 0.3, 0.2, 0.1}, at::kDouble)) + 0.1 * Stream(8, "mixture").at(1).normal({6}).to(at::kDouble);
    outer_layout_.add("shares", {4});
    inner_layout_.add("y", {6});
    x0_ = at::full({4}, 0.25, at::kDouble);
    y0_ = at::zeros({6}, at::kDouble);
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return 0.5 * (y - B_.mv(x)).square().sum();
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return 0.5 * (y - t_).square().sum() + 0.5 * kRidge * x.square().sum();
  }
  std::vector<Constraint> outer_constraints() const override { return {Constraint::simplex()}; }
  /// By the conditions of the constrained quadratic, M x = b − ν 1 with Σ x = 1; its elements are positive, so it is the minimum.
  at::Tensor minimum() const {
    const at::Tensor M = B_.t().mm(B_) + kRidge * at::eye(4, B_.options()), ones = at::ones({4}, B_.options());
    const at::Tensor free = at::linalg_solve(M, B_.t().mv(t_)), slope = at::linalg_solve(M, ones);
    return free - slope * (free.sum() - 1) / slope.sum();
  }

 private:
  static constexpr double kRidge = 0.1;
  at::Tensor B_, t_;
};

TEST(DoubleLoop, DescendsOnTheSimplexToTheClosedFormMinimumByFactors) {
  const Mixture problem;
  ASSERT_GT(problem.minimum().min().item<double>(), 0.02);
  ASSERT_GT((problem.minimum() - problem.initial_outer()).norm().item<double>(), 0.1);
  for (const char* smoothing : {"", ", smoothing = 4, smoothing_decay = 0.8"}) {
    const Loop loop(problem, fmt::format(R"(
inner = {{ rule = "sgd", lr = 1.0, steps = 1 }}
hypergradient = {{ estimator = "implicit", solver = "dense" }}
outer = {{ rule = "exponentiated-gradient", lr = 0.2{} }}
)",
                                         smoothing));
    State state = loop->init();
    double before = std::numeric_limits<double>::infinity();
    for (int k = 0; k < 20; ++k) {
      const double loss = loop->step(state, 1).outer_loss;
      EXPECT_TRUE(loss < before || *smoothing != 0) << k;
      before = loss;
      EXPECT_NEAR(state.tensor("x").sum().item<double>(), 1, 1e-15);
    }
    loop->step(state, 2000);
    expect_near(state.tensor("x"), problem.minimum(), 1e-8);
  }
}

// One share falls by e⁻¹ a step and more: the projection after each step must not take it to zero, where it would stay.
TEST(DoubleLoop, AShareThatHasBecomeTinyCanComeBack) {
  const Mixture problem;
  const Loop loop(problem, R"(
inner = { rule = "sgd", lr = 1.0, steps = 1 }
hypergradient = { estimator = "implicit", solver = "dense" }
outer = { rule = "exponentiated-gradient", lr = 0.2 }
)");
  State state = loop->init();
  state.set("x", at::tensor({0.5, 0.5, 1e-25, 1e-30}, at::kDouble));
  loop->step(state, 3000);
  expect_near(state.tensor("x"), problem.minimum(), 1e-6);
}

State saved_and_loaded(const State& state) {
  const std::string path = (std::filesystem::temp_directory_path() / fmt::format("double-loop-{}", getpid())).string();
  save_state(state, path);
  State loaded = load_state(path);
  std::filesystem::remove(path);
  return loaded;
}

void expect_same_tensors(const State& actual, const State& expected) {
  for (const auto& [name, value] : expected.values()) {
    const auto* tensor = std::get_if<at::Tensor>(&value);
    EXPECT_TRUE(!tensor || at::equal(*tensor, actual.tensor(name))) << name;
  }
}

TEST(DoubleLoop, GoesOnFromASavedStateBitForBit) {
  const LogisticWeightsProblem problem;
  const Loop loop(problem, R"(
inner = { rule = "sgd", momentum = 0.9, lr = 0.5, steps = 4, batch = 7, carry_state = true }
hypergradient = { estimator = "implicit", solver = "cg", iterations = 3 }
outer = { rule = "adam", lr = 0.1 }
)");
  State whole = loop->init();
  loop->step(whole, 3);
  State resumed = saved_and_loaded(whole);
  loop->step(whole, 4);
  loop->step(resumed, 4);
  expect_same_tensors(resumed, whole);
  EXPECT_EQ(resumed.integer("inner_step"), 28) << "batches go on across outer steps";
  EXPECT_TRUE(whole.has("q"));
  EXPECT_TRUE(whole.has("inner.state.0"));
  State fresh = loop->init();
  loop->step(fresh, 4);
  EXPECT_FALSE(at::equal(fresh.tensor("x"), whole.tensor("x")));
}

TEST(DoubleLoop, GoesOnInTheMiddleOfAWindowOfSmoothingBitForBit) {
  const LogisticWeightsProblem problem;
  for (const char* rule : {R"("sgd", lr = 5.0)", R"("adam", lr = 0.1)"}) {
    const Loop loop(problem, fmt::format(R"(
inner = {{ rule = "sgd", lr = 0.5, steps = 4, batch = 7 }}
hypergradient = {{ estimator = "implicit", solver = "cg", iterations = 3 }}
outer = {{ rule = {}, smoothing = 4, smoothing_decay = 0.6 }}
)",
                                         rule));
    for (const int64_t interrupted : {2, 4, 7}) {  // before the window is full, as it fills, and after it has gone round
      State whole = loop->init();
      loop->step(whole, interrupted);
      State resumed = saved_and_loaded(whole), forgetful = saved_and_loaded(whole);
      EXPECT_EQ(resumed.integer("outer.window_step"), interrupted);
      for (int64_t slot = 0; slot < std::min<int64_t>(4, interrupted); ++slot)
        forgetful.erase(fmt::format("outer.window.{}", slot));
      forgetful.erase("outer.window_step");
      for (State* state : {&whole, &resumed, &forgetful}) loop->step(*state, 5);
      expect_same_tensors(resumed, whole);
      EXPECT_GT((forgetful.tensor("x") - whole.tensor("x")).norm().item<double>(), 1e-3);
    }
  }
}

TEST(DoubleLoop, KeepsWhatAnEstimatorWantsToRememberInTheState) {
  const LogisticWeightsProblem problem;
  const Loop loop(problem, R"(
inner = { rule = "sgd", lr = 0.5, steps = 4 }
hypergradient = { estimator = "functional", adjoint = "network", adjoint_steps = 3, adjoint_lr = 0.1 }
outer = { rule = "adam", lr = 0.1 }
)");
  State whole = loop->init();
  loop->step(whole, 3);
  EXPECT_EQ(whole.tensor("estimator.0.3").item<int64_t>(), 9);
  State resumed = saved_and_loaded(whole), forgetful = saved_and_loaded(whole);
  for (const char* entry : {"estimator.0.0", "estimator.0.1", "estimator.0.2", "estimator.0.3"}) forgetful.erase(entry);
  for (State* state : {&whole, &resumed, &forgetful}) loop->step(*state, 3);
  expect_same_tensors(resumed, whole);
  EXPECT_GT((forgetful.tensor("x") - whole.tensor("x")).norm().item<double>(), 1e-3);
}

/// Remembers, for each inner problem apart, its slice and how often it was asked.
class Remembering final : public Estimator {
 public:
  std::string_view name() const override { return "remembering"; }
  std::vector<std::string> objections(const Problem&, const InnerSolver&) const override { return {}; }
  Hypergradient estimate(const EstimatorInput& in) const override {
    const Gradients outer = in.oracle.outer(in.x, in.solution.y, in.outer_batch);
    Hypergradient h;
    h.value = h.direct = outer.x;
    const at::Tensor before = in.carried.empty() ? at::zeros({2}, at::kLong) : in.carried[0];
    h.carried = {at::stack({at::full({}, in.outer_batch.slice, at::kLong), before[1] + 1})};
    return h;
  }
};

TEST(DoubleLoop, RemembersForEachInnerProblemApart) {
  const SinusoidMamlProblem problem;
  const Loop made(problem, R"(
inner = { rule = "sgd", lr = 0.01, steps = 1, start = "cold" }
hypergradient = { estimator = "unrolled" }
outer = { rule = "sgd", lr = 0.1 }
)");
  Section section = Config::parse("lr = 0.1", "test").root();
  const auto solver = std::shared_ptr<const InnerSolver>(&made->solver(), [](const InnerSolver*) {});
  const DoubleLoop loop(made.oracle, solver, std::make_shared<Remembering>(), make_outer_optimizer("sgd", section),
                        {.start = Start::kCold});
  State state = loop.init();
  loop.step(state, 5);
  for (int64_t s = 0; s < 4; ++s) {
    EXPECT_TRUE(at::equal(state.tensor(fmt::format("estimator.{}.0", s)), at::tensor({s, int64_t{5}}, at::kLong)));
  }
}

// The state holds what the estimator carries on: without it the end is another.
TEST(DoubleLoop, GoesOnFromWhatAnEstimatorCarriesBitForBit) {
  const LogisticWeightsProblem problem;
  for (const char* form : {"window", "dense", "kronecker"}) {
    SCOPED_TRACE(form);
    const Loop loop(problem, fmt::format(R"(
inner = {{ rule = "sgd", lr = 0.5, steps = 4, batch = 7 }}
hypergradient = {{ estimator = "fisher", form = "{}", scores = 3, smoothing = 0.9 }}
outer = {{ rule = "adam", lr = 0.1 }}
)",
                                         form));
    State whole = loop->init();
    loop->step(whole, 3);
    const std::string path = (std::filesystem::temp_directory_path() / fmt::format("double-loop-{}", getpid())).string();
    save_state(whole, path);
    State resumed = load_state(path), forgetful;
    std::filesystem::remove(path);
    for (const auto& [name, value] : resumed.values()) {
      if (!name.starts_with("estimator.")) forgetful.set(name, value);
    }
    for (State* one : {&whole, &resumed, &forgetful}) loop->step(*one, 4);
    EXPECT_TRUE(whole.has("estimator.0.0"));
    EXPECT_TRUE(at::equal(whole.tensor("estimator.0.0"), resumed.tensor("estimator.0.0")));
    EXPECT_TRUE(at::equal(whole.tensor("x"), resumed.tensor("x")));
    EXPECT_FALSE(at::equal(whole.tensor("x"), forgetful.tensor("x")));
  }
}

TEST(DoubleLoop, LetsAnEstimatorWorkAlongWithTheInnerSolveWithTheSameBits) {
  const ThreadsGuard one(1);
  const MlpProblem problem;
  for (const char* form : {"dense", "kronecker"}) {
    for (const int draws : {1, 3}) {
      const auto end = [&](bool overlap, Cost& cost) {
        const Loop loop(problem, fmt::format(R"(
inner = {{ rule = "sgd", lr = 0.2, steps = 5, batch = 7 }}
hypergradient = {{ estimator = "fisher", form = "{}", scores = 3, smoothing = 0.9, overlap = {}, variance_samples = {} }}
outer = {{ rule = "adam", lr = 0.1 }}
)",
                                             form, overlap, draws));
        State state = loop->init();
        cost = loop->step(state, 6).cost;
        return state;
      };
      Cost plain_cost, overlapped_cost;
      const State plain = end(false, plain_cost), overlapped = end(true, overlapped_cost);
      for (const auto& [name, value] : plain.values()) {
        if (!std::holds_alternative<at::Tensor>(value)) continue;
        EXPECT_TRUE(at::equal(plain.tensor(name), overlapped.tensor(name))) << form << ", " << draws << ": " << name;
      }
      EXPECT_EQ(plain_cost.oracle_calls(), overlapped_cost.oracle_calls());
      EXPECT_EQ(plain_cost.second_thread_seconds, 0);
      EXPECT_GT(overlapped_cost.second_thread_seconds, 0);
      EXPECT_LE(overlapped_cost.hidden_seconds, overlapped_cost.second_thread_seconds);
    }
  }
}

TEST(DoubleLoop, EvaluatesWithoutAnUpdateAndLeavesTheInnerSolution) {
  const QuadraticProblem problem;
  const Loop loop(problem, kExact);
  State state = loop->init();
  loop->step(state, 2);
  const at::Tensor x = state.tensor("x").clone();
  const Record record = loop->evaluate(state);
  EXPECT_EQ(record.step, 2);
  EXPECT_TRUE(at::equal(state.tensor("x"), x));
  expect_near(state.tensor("y"), problem.solution(x), 1e-9);
}

TEST(DoubleLoop, ComputesMetricsForTheRecordAlone) {
  const Boxed problem(1e9);
  const Loop loop(problem, kExact);
  State state = loop->init();
  const double sum = state.tensor("x").sum().item<double>();
  EXPECT_EQ(loop->step(state, 5).metrics.at("sum"), sum);
  EXPECT_EQ(problem.measured, 1);
  EXPECT_EQ(loop->evaluate(state).metrics.at("sum"), state.tensor("x").sum().item<double>());
}

// Batches of two out of six samples for each role: everything there can be is few enough to be enumerated.
class SmallRidge {
 public:
  SmallRidge() : problem(RidgeOptions{.features = 3, .inner_samples = 6, .outer_samples = 6}), oracle(problem) {}

  DoubleLoop loop(const std::string& estimator, const std::string& keys, DoubleLoopOptions options) const {
    Section section = Config::parse(keys, "test.toml").root();
    std::shared_ptr<const Estimator> made = make_estimator(estimator, section);
    Section inner = Config::parse("rule = \"sgd\"\nlr = 0.1\nsteps = 4", "test.toml").root();
    Section outer = Config::parse("lr = 0.1", "test.toml").root();
    options.start = Start::kCold;
    options.warm_q = false;
    return {oracle, make_inner_solver(inner, problem, problem.initial_outer(), 0, {}), made, make_outer_optimizer("sgd", outer),
            std::move(options)};
  }
  static BatchPlan plan(std::string_view role) { return BatchPlan::shuffled(6, 2, Stream(11, role)); }

  // The mean over all pairs of samples of what `of` says about one.
  template <class F>
  static at::Tensor over_pairs(const F& of) {
    at::Tensor sum;
    for (int64_t i = 0; i < 6; ++i) {
      for (int64_t j = i + 1; j < 6; ++j) {
        Batch batch;
        batch.samples = at::tensor({i, j}, at::kLong);
        const at::Tensor one = of(batch);
        sum = sum.defined() ? sum + one : one;
      }
    }
    return sum / 15.0;
  }

  const RidgeProblem problem;
  const AutodiffOracle oracle;
};

// With batches drawn apart from each other the expectation is E ∂x f − E[∂x∂y g]ᵀ E[H⁻¹] E[∂y f]; with one batch for H and the
// cross product it would be another number.
TEST(DoubleLoop, TakesABatchOfItsOwnForEachRoleAndIsRightInExpectation) {
  const SmallRidge small;
  const at::Tensor x = small.problem.initial_outer();
  DoubleLoopOptions options;
  options.outer_batches = SmallRidge::plan("outer");
  options.hvp_batches = SmallRidge::plan("hvp");
  options.cross_batches = SmallRidge::plan("cross");
  options.variance_samples = 4000;
  const DoubleLoop loop = small.loop("implicit", "solver = \"dense\"", options);
  State after;
  const Hypergradient h = loop.hypergradient(loop.init(), &after);
  const at::Tensor y = after.tensor("y"), unit = at::eye(3, y.options());

  const auto inner = [&](const Batch& batch) { return small.oracle.linearize_inner(x, y, batch); };
  const at::Tensor b = SmallRidge::over_pairs([&](const Batch& batch) { return small.oracle.outer(x, y, batch).y; });
  const at::Tensor direct = SmallRidge::over_pairs([&](const Batch& batch) { return small.oracle.outer(x, y, batch).x; });
  const at::Tensor inverse =
      SmallRidge::over_pairs([&](const Batch& batch) { return at::linalg_inv(inner(batch)->jvp_y(unit)); });
  const at::Tensor G = SmallRidge::over_pairs([&](const Batch& batch) { return inner(batch)->jvp_x(unit); });  // transposed
  const at::Tensor expected = direct - G.mv(inverse.mv(b));
  const at::Tensor full = direct - G.mv(at::linalg_solve(inner({})->jvp_y(unit), b));

  ASSERT_TRUE(h.certificate.standard_error.has_value());
  const double error = (h.value - expected).norm().item<double>(), standard = *h.certificate.standard_error;
  EXPECT_LT(error, 3 * standard);
  EXPECT_LT(standard, 0.03 * expected.norm().item<double>());
  EXPECT_GT((h.value - full).norm().item<double>(), 6 * standard) << "the inverse of the mean is not the mean of the inverses";
  EXPECT_GT((h.value - h.direct).norm().item<double>(), 6 * standard);
}

TEST(DoubleLoop, ReportsTheSpreadOfItsDraws) {
  const SmallRidge small;
  DoubleLoopOptions options;
  options.outer_batches = SmallRidge::plan("outer");
  options.cross_batches = SmallRidge::plan("cross");
  // One draw at each of many steps, at one x, against N draws at one step.
  std::vector<at::Tensor> values;
  const DoubleLoop one = small.loop("identity", "", options);
  State state = one.init();
  for (int64_t step = 0; step < 600; ++step) {
    state.set("step", step);
    const Hypergradient h = one.hypergradient(state);
    EXPECT_FALSE(h.certificate.standard_error.has_value());
    values.push_back(h.value);
  }
  const at::Tensor all = at::stack(values);
  const double spread = (all - all.mean(0)).square().sum().item<double>() / 599;
  options.variance_samples = 200;
  const DoubleLoop many = small.loop("identity", "", options);
  EXPECT_NEAR(*many.hypergradient(many.init()).certificate.standard_error / std::sqrt(spread / 200), 1.0, 0.1);
  // The first N of those steps are the N draws.
  expect_near(many.hypergradient(many.init()).value, all.narrow(0, 0, 200).mean(0), 1e-12);
}

TEST(DoubleLoop, GoesThroughTheSolveAgainForEachDrawOfAnEstimatorThatUsesItUp) {
  const SmallRidge small;
  DoubleLoopOptions options;
  options.outer_batches = SmallRidge::plan("outer");
  options.variance_samples = 3;
  const DoubleLoop loop = small.loop("unrolled", "", options);
  const Hypergradient h = loop.hypergradient(loop.init());
  options.variance_samples = 1;
  const DoubleLoop single = small.loop("unrolled", "", options);
  State state = single.init();
  at::Tensor sum = at::zeros_like(h.value);
  for (int64_t step = 0; step < 3; ++step) {
    state.set("step", step);
    sum = sum + single.hypergradient(state).value;
  }
  expect_near(h.value, sum / 3, 1e-12);
  EXPECT_GT(*h.certificate.standard_error, 0.0);
}

TEST(DoubleLoop, RefusesABatchForARoleThatTheEstimatorDoesNotHave) {
  const SmallRidge small;
  DoubleLoopOptions hvps, cross;
  hvps.hvp_batches = SmallRidge::plan("hvp");
  cross.cross_batches = SmallRidge::plan("cross");
  EXPECT_THROW(small.loop("identity", "", hvps), Error);
  EXPECT_NO_THROW(small.loop("identity", "", cross));
  EXPECT_THROW(small.loop("unrolled", "", cross), Error);
  hvps.variance_samples = 0;
  EXPECT_THROW(small.loop("implicit", "", hvps), Error);
}

TEST(DoubleLoop, CertifiesWhenItIsDueAndEveryRecordSaysWhatIsKnown) {
  const SmallRidge small;
  DoubleLoopOptions options;
  options.bound_every = 2;
  options.check_every = 3;
  const DoubleLoop loop = small.loop("implicit", "iterations = 2", options);
  State state = loop.init();
  for (int64_t k = 0; k < 5; ++k) {
    const at::Tensor x = state.tensor("x").clone();
    const double error = (loop.hypergradient(state).value - small.problem.hypergradient(x)).norm().item<double>();
    const Record record = loop.step(state, 1);
    ASSERT_TRUE(record.certificate.has_value());
    const Certificate& certificate = *record.certificate;
    EXPECT_EQ(certificate.differentiates, "F");
    EXPECT_EQ(certificate.error_bound.has_value(), k % 2 == 0);
    EXPECT_EQ(certificate.spot_check.has_value(), k % 3 == 0);
    if (k % 2 == 0) {
      EXPECT_GE(*certificate.error_bound, error);
      EXPECT_LE(*certificate.error_bound, 1.5 * error);
    } else {
      EXPECT_TRUE(certificate.bound_reason.starts_with("No bound: ")) << certificate.bound_reason;
    }
  }
  EXPECT_TRUE(loop.evaluate(state).certificate->spot_check.has_value()) << "the last point is looked at in any case";
}

}  // namespace
}  // namespace bilevel
