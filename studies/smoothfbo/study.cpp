#include "studies/study.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <deque>
#include <limits>
#include <memory>
#include <numeric>

#include "bilevel/algorithm/double_loop.h"
#include "bilevel/algorithm/hpm.h"
#include "bilevel/algorithm/projection.h"
#include "bilevel/hypergrad/functional.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/newton_cg.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/dense.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/outer/adam.h"
#include "bilevel/outer/smoothed.h"
#include "bilevel/problem/model.h"

namespace bilevel {
namespace {

// --- Regression whose targets drift ---

constexpr int64_t kPoints = 256, kInputs = 5, kOutputs = 3, kBatch = 32;
constexpr int64_t kMemory = 35;        // blocks of targets that are remembered: more than a period
constexpr int64_t kFeatures = 32;      // of the linear model, whose inner problem is solved exactly
constexpr int64_t kRegretWindow = 50;  // the same for all methods: a longer one has a smaller regret by construction

struct Drift {
  double frequency = 0.2;  // radians a step
  bool fades = false;      // the phase goes with √t: the variation of F_t from step to step is then sublinear in all
  double phase(int64_t t) const {
    const auto time = static_cast<double>(t);
    return frequency * (fades ? std::copysign(10 * std::sqrt(std::abs(time)), time) : time);
  }
};

/// At time t: y are the weights of h, x = λ ≥ 0 those of the blocks seen before,
///
///   g = Σ_δ λ_δ mean_i |Y_{t−δ,i} − h(X_i)|²,   f = mean_i |Y_{t,i} − h(X_i)|² on other points,
///   Y_t = Y + 10 sin(phase(t)) u + noise, drawn anew for each batch.
class DriftProblem final : public Problem {
 public:
  DriftProblem(const Drift& drift, bool linear, int64_t seed)
      : drift_(drift), linear_(linear), seed_(static_cast<uint64_t>(seed)) {
    const Stream stream(seed_, "smoothfbo points");
    const at::Tensor points = stream.at(0).normal({kPoints, kInputs}).to(dtype());
    const auto truth = make_model({.kind = "mlp", .hidden = {64}}, {kInputs}, kOutputs);
    const at::Tensor weights = truth->initial("random", stream.at(1), dtype());
    targets_ = truth->outputs(weights, points);
    direction_ = stream.at(2).normal({kOutputs}).to(dtype());
    direction_ = (direction_ / direction_.norm()).view({kOutputs, 1});
    if (linear) {
      X_ = points.mm(stream.at(3).normal({kInputs, kFeatures}).to(dtype())).tanh();
      model_ = make_model({.kind = "linear"}, {kFeatures}, kOutputs);
    } else {
      X_ = points;
      model_ = make_model({.kind = "mlp", .hidden = {64, 64}}, {kInputs}, kOutputs);
    }
    blocks_ = at::arange(1, kMemory + 1, at::kLong);
    layout_.add("recency", {kMemory});
  }

  void set_time(int64_t t) { t_ = t; }

  const Layout& outer_layout() const override { return layout_; }
  const Layout& inner_layout() const override { return model_->layout(); }
  at::Tensor initial_outer() const override { return at::full({kMemory}, 1.0 / kMemory, dtype()); }
  std::vector<Constraint> outer_constraints() const override {
    return {Constraint::box(0.0, std::numeric_limits<double>::infinity())};
  }
  at::Tensor initial_inner(const at::Tensor& /*x*/, int64_t /*slice*/) const override {
    return model_->initial("random", Stream(seed_, "smoothfbo h").at(0), dtype());
  }
  int64_t inner_samples() const override { return kPoints / 2; }
  int64_t outer_samples() const override { return kPoints / 2; }
  bool has_outputs() const override { return true; }
  bool has_outer_outputs() const override { return true; }
  at::Tensor inner_outputs(const at::Tensor& y, const Batch& b) const override { return model_->outputs(y, rows(inner_rows(b))); }
  at::Tensor outer_outputs(const at::Tensor& y, const Batch& b) const override { return model_->outputs(y, rows(outer_rows(b))); }
  at::Tensor inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& /*y*/, const at::Tensor& z,
                                   const Batch& batch) const override {
    const at::Tensor seen =
        observed(t_ - blocks_, inner_rows(batch), Stream(seed_, "smoothfbo inner noise").at(linear_ ? t_ : batch.step));
    return x.dot((seen - z).square().sum(1).mean(1));
  }
  at::Tensor outer_loss_of_outputs(const at::Tensor& /*x*/, const at::Tensor& /*y*/, const at::Tensor& z,
                                   const Batch& batch) const override {
    const at::Tensor seen =
        observed(at::full({1}, t_, at::kLong), outer_rows(batch), Stream(seed_, "smoothfbo outer noise").at(t_));
    return (seen[0] - z).square().sum(0).mean();
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return inner_loss_of_outputs(x, y, inner_outputs(y, b), b);
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return outer_loss_of_outputs(x, y, outer_outputs(y, b), b);
  }

 private:
  static at::ScalarType dtype() { return at::kDouble; }
  static at::Tensor inner_rows(const Batch& b) { return b.full() ? at::arange(kPoints / 2) : b.samples; }
  static at::Tensor outer_rows(const Batch& b) { return inner_rows(b) + kPoints / 2; }
  at::Tensor rows(const at::Tensor& which) const { return X_.index_select(0, which); }
  /// Targets at these times, [times, outputs, points].
  at::Tensor observed(const at::Tensor& times, const at::Tensor& which, Draw noise) const {
    std::vector<double> heights;
    for (int64_t i = 0; i < times.size(0); ++i) heights.push_back(10 * std::sin(drift_.phase(times[i].item<int64_t>())));
    const at::Tensor shift = at::tensor(heights, at::kDouble).view({-1, 1, 1}) * direction_;
    return targets_.index_select(1, which) + shift + noise.normal({times.size(0), kOutputs, which.size(0)});
  }

  const Drift drift_;
  const bool linear_;  // its inner problem can be solved exactly, so its noise is that of the time
  const uint64_t seed_;
  int64_t t_ = 0;
  at::Tensor X_, targets_, direction_, blocks_;
  std::unique_ptr<Model> model_;
  Layout layout_;
};

// --- Methods ---

struct Method {
  std::shared_ptr<const Estimator> estimator;
  int64_t window = 1;
  double decay = 1;
  int64_t inner_steps = 8;
  double lr = 1e-2;
};

std::shared_ptr<const Estimator> functional(double lr) {
  return std::make_shared<Functional>(
      FunctionalOptions{.adjoint = FunctionalOptions::Adjoint::kNetwork, .adjoint_steps = 4, .adjoint_lr = lr});
}
std::shared_ptr<const Estimator> aid(int64_t products) {
  return std::make_shared<Implicit>(std::make_unique<Cg>(CgOptions{.iterations = products, .damping = 1e-4}));
}

std::shared_ptr<const InnerSolver> adam(int64_t steps, int64_t seed) {
  RuleSolverOptions options;
  options.lr = 1e-3;
  options.steps = steps;
  options.carry_state = true;
  return std::make_shared<RuleSolver>(
      std::make_unique<AdamRule>(AdamRuleOptions{}), options,
      BatchPlan::shuffled(kPoints / 2, kBatch, Stream(static_cast<uint64_t>(seed), "smoothfbo inner")));
}

DoubleLoopOptions in_batches(const Estimator& estimator, int64_t seed) {
  const auto plan = [seed](const char* purpose) {
    return BatchPlan::shuffled(kPoints / 2, kBatch, Stream(static_cast<uint64_t>(seed), purpose));
  };
  DoubleLoopOptions options;
  options.carry_rule_state = true;
  options.outer_batches = plan("smoothfbo outer");
  const BatchRoles roles = estimator.batch_roles();
  if (roles.hvps) options.hvp_batches = plan("smoothfbo products");
  if (roles.cross_product) options.cross_batches = plan("smoothfbo products");
  return options;
}

std::shared_ptr<const OuterOptimizer> outer_rule(const Method& method) {
  return std::make_shared<Smoothed>(std::make_unique<OuterAdam>(OuterAdamOptions{.lr = method.lr}), method.window, method.decay);
}

/// What one stream has cost a method.
struct Passed {
  double loss = 0;    // mean of f at each step, before x moves
  double regret = 0;  // mean of |mean of the last kRegretWindow hypergradients|², each at the x and on the data of its own step
  double first_regret = 0, last_regret = 0;  // over the first and the last quarter
  double calls = 0;                          // of the oracle, a step
  double invariance = 0;                     // the greatest |⟨λ, d⟩| / (|λ| |d|)
  at::Tensor x;
};

class Meter {
 public:
  explicit Meter(int64_t steps) : steps_(steps) {}
  void look(const Record& record, const at::Tensor& x, const at::Tensor& d) {
    window_.push_back(d);
    if (static_cast<int64_t>(window_.size()) > kRegretWindow) window_.pop_front();
    const at::Tensor mean = at::stack(std::vector<at::Tensor>(window_.begin(), window_.end())).mean(0);
    regrets_.push_back(mean.square().sum().item<double>());
    passed_.loss += record.outer_loss / static_cast<double>(steps_);
    const double cosine = (x.dot(d).abs() / (x.norm() * d.norm())).item<double>();
    if (std::isfinite(cosine)) passed_.invariance = std::max(passed_.invariance, cosine);
  }
  Passed result(const at::Tensor& x, const Cost& cost) {
    const auto mean = [&](size_t from, size_t to) {
      return std::accumulate(regrets_.begin() + static_cast<std::ptrdiff_t>(from),
                             regrets_.begin() + static_cast<std::ptrdiff_t>(to), 0.0) /
             static_cast<double>(to - from);
    };
    const size_t n = regrets_.size();
    passed_.regret = mean(0, n);
    passed_.first_regret = mean(0, n / 4);
    passed_.last_regret = mean(n - n / 4, n);
    passed_.calls = static_cast<double>(cost.gradients + cost.hvps + cost.cross_products) / static_cast<double>(steps_);
    passed_.x = x;
    return passed_;
  }

 private:
  const int64_t steps_;
  std::deque<at::Tensor> window_;
  std::vector<double> regrets_;
  Passed passed_;
};

Passed follow(DriftProblem& problem, const Method& method, int64_t steps, int64_t seed,
              std::shared_ptr<const InnerSolver> solver = nullptr) {
  const AutodiffOracle autodiff(problem);
  const CountedOracle oracle(autodiff);
  const bool exact = solver != nullptr;
  const DoubleLoop loop(oracle, exact ? std::move(solver) : adam(method.inner_steps, seed), method.estimator, outer_rule(method),
                        exact ? DoubleLoopOptions{} : in_batches(*method.estimator, seed));
  State state = loop.init();
  Meter meter(steps);
  for (int64_t t = 0; t < steps; ++t) {
    problem.set_time(t);
    const at::Tensor x = state.tensor("x");
    Hypergradient taken;
    const Record record = loop.step(state, taken);
    meter.look(record, x, taken.value);
  }
  return meter.result(state.tensor("x"), oracle.cost());
}

/// OAGD (Tarzanagh et al. 2024): the mean of the last w losses' hypergradients, each evaluated at the x of now.
Passed follow_by_oagd(DriftProblem& problem, const Method& method, int64_t window, int64_t steps, int64_t seed) {
  const AutodiffOracle autodiff(problem);
  const CountedOracle oracle(autodiff);
  const DoubleLoop loop(oracle, adam(method.inner_steps, seed), method.estimator, outer_rule(method),
                        in_batches(*method.estimator, seed));
  const OuterAdam rule({.lr = method.lr});
  State state = loop.init();
  Meter meter(steps);
  for (int64_t t = 0; t < steps; ++t) {
    problem.set_time(t);
    State after = state;
    const Hypergradient now = loop.hypergradient(state, &after);
    std::vector<at::Tensor> all = {now.value};
    for (int64_t i = 1; i < std::min(window, t + 1); ++i) {
      problem.set_time(t - i);
      all.push_back(loop.hypergradient(state).value);
    }
    Record record;
    record.outer_loss = now.outer_loss;
    meter.look(record, state.tensor("x"), now.value);
    after.set("x", project(problem, rule.step(after, state.tensor("x"), at::stack(all).mean(0))));
    after.set("step", t + 1);
    state = std::move(after);
  }
  return meter.result(state.tensor("x"), oracle.cost());
}

// --- Fast drift ---

constexpr int64_t kTuningSeed = 1000;

/// Of the adjoint network: the rate with the least loss without a window, on a stream of its own.
double adjoint_rate(StudyRun& run) {
  const auto rates = run.setting<std::vector<double>>("adjoint_rates");
  if (rates.size() == 1) return rates.front();
  double best = rates.front(), least = std::numeric_limits<double>::infinity();
  for (const double rate : rates) {
    DriftProblem problem({}, false, kTuningSeed);
    const double loss = follow(problem, {functional(rate)}, run.setting<int64_t>("steps"), kTuningSeed).loss;
    if (loss < least) least = loss, best = rate;
  }
  return best;
}

std::vector<double> numbers_of(const at::Tensor& t) {
  const at::Tensor flat = t.to(at::kDouble).contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

void follow_fast_drift(StudyRun& run, double rate) {
  const int64_t steps = run.setting<int64_t>("steps"), oagd_window = run.setting<int64_t>("oagd_window"),
                oagd_seeds = run.setting<int64_t>("oagd_seeds");
  const std::vector<int64_t> seeds = run.seeds();
  const bool peers = run.asks_for("beats-unsmoothed-parametric");
  Table losses{.title = fmt::format("Mean outer loss over the stream (noise alone: 3; adjoint's rate {})", rate),
               .columns = {{"seed", true},
                           {"fixed λ", true},
                           {"FuncID, w = 1", true},
                           {"w = 10", true},
                           {"w = 50", true},
                           {"w = 150", true},
                           {"one-step unroll", true},
                           {"AID", true},
                           {"AID, w = 50", true},
                           {"SOBOW", true},
                           {"OAGD", true}},
               .rows = {}};
  Table regrets{.title = "Mean local regret, a window of 50 for all",
                .columns = {{"seed", true}, {"FuncID, w = 1", true}, {"w = 10", true}, {"w = 50", true}, {"w = 150", true}},
                .rows = {}};
  std::vector<LineChart::Series> learned;
  for (size_t i = 0; i < seeds.size(); ++i) {
    run.progress("fast drift", 0.75 * static_cast<double>(i) / static_cast<double>(seeds.size()));
    DriftProblem problem({}, false, seeds[i]);
    const auto pass = [&](const Method& method) { return follow(problem, method, steps, seeds[i]); };
    const Passed one = pass({functional(rate)}), fifty = pass({functional(rate), 50});
    run.measure("smoothing-helps", fifty.loss / one.loss);
    run.measure("smoothing-lowers-regret", fifty.regret / one.regret);
    run.measure("smoothing-costs-nothing", fifty.calls / one.calls);
    Table::Row loss{{Cell(std::to_string(seeds[i]))}}, regret = loss;
    if (peers) {
      const Passed fixed = pass({no_hypergradient()}), ten = pass({functional(rate), 10}),
                   long_window = pass({functional(rate), 150});
      const Passed unrolled = pass({std::make_shared<Unrolled>(UnrolledOptions{.steps = 1})}), plain_aid = pass({aid(10)});
      const Passed smooth_aid = pass({aid(10), 50}), sobow = pass({aid(5), 50, 0.95, 1});
      run.measure("beats-fixed-weights", fifty.loss / fixed.loss);
      run.measure("a-longer-window-is-no-better", long_window.loss / fifty.loss);
      run.measure("beats-unsmoothed-parametric", fifty.loss / std::min(unrolled.loss, plain_aid.loss));
      run.measure("beats-smoothed-parametric", fifty.loss / smooth_aid.loss);
      run.measure("beats-sobow", fifty.loss / sobow.loss);
      for (const Passed* p : {&fixed, &one, &ten, &fifty, &long_window, &unrolled, &plain_aid, &smooth_aid, &sobow}) {
        loss.cells.push_back(format_fixed(p->loss, 2));
      }
      for (const Passed* p : {&one, &ten, &fifty, &long_window}) regret.cells.push_back(format_fixed(p->regret, 3));
      if (static_cast<int64_t>(i) < oagd_seeds) {
        const Passed oagd = follow_by_oagd(problem, {aid(5)}, oagd_window, steps, seeds[i]);
        run.measure("oagd-asks-for-more", oagd.calls / fifty.calls);
        run.measure("beats-oagd", fifty.loss / oagd.loss);
        loss.cells.push_back(format_fixed(oagd.loss, 2));
      }
    } else {
      loss.cells.insert(loss.cells.end(), {Cell(""), format_fixed(one.loss, 2), Cell(""), format_fixed(fifty.loss, 2)});
      regret.cells.insert(regret.cells.end(), {format_fixed(one.regret, 3), Cell(""), format_fixed(fifty.regret, 3)});
    }
    loss.cells.resize(losses.columns.size(), Cell(""));
    regret.cells.resize(regrets.columns.size(), Cell(""));
    losses.rows.push_back(std::move(loss));
    regrets.rows.push_back(std::move(regret));
    if (i == 0) {
      const std::vector<double> blocks = numbers_of(at::arange(1, kMemory + 1));
      learned = {{"w = 1", blocks, numbers_of(one.x)}, {"w = 50", blocks, numbers_of(fifty.x)}};
    }
  }
  run.picture(LineChart{.title = "Weights of the blocks after the stream, first seed (a period is 31 blocks)",
                        .x_label = "blocks back",
                        .y_label = "λ",
                        .series = std::move(learned)});
  run.show(std::move(losses));
  run.show(std::move(regrets));
}

// --- Where smoothing cannot help, and where the regret falls ---

void check_limits(StudyRun& run, double rate) {
  const int64_t steps = run.setting<int64_t>("check_steps");
  const auto seeds = run.setting<std::vector<int64_t>>("check_seeds");
  for (size_t i = 0; i < seeds.size(); ++i) {
    run.progress("counter-checks", 0.75 + 0.25 * static_cast<double>(i) / static_cast<double>(seeds.size()));
    const auto seed = seeds[i];
    if (run.asks_for("slow-drift")) {
      DriftProblem slow({.frequency = 0.05}, false, seed);
      run.measure("slow-drift",
                  follow(slow, {functional(rate), 50}, steps, seed).loss / follow(slow, {functional(rate)}, steps, seed).loss);
    }
    if (run.asks_for("regret-is-sublinear")) {
      DriftProblem fading({.frequency = 0.2, .fades = true}, false, seed);
      const Passed passed = follow(fading, {functional(rate), 50}, steps, seed);
      run.measure("regret-is-sublinear", passed.last_regret / passed.first_regret);
    }
    DriftProblem linear({}, true, seed);
    const auto exactly = [&](int64_t window) {
      const auto solver = std::make_shared<NewtonCg>(NewtonCgOptions{.tolerance = 1e-9});
      return follow(linear, {std::make_shared<Implicit>(std::make_unique<Dense>(DenseOptions{})), window}, steps, seed, solver);
    };
    const Passed one = exactly(1), smooth = exactly(32);
    run.measure("exact-regret", smooth.regret / one.regret);
    run.measure("exact-loss", smooth.loss / one.loss);
    run.measure("scale-of-the-weights", std::max(one.invariance, smooth.invariance));
  }
}

}  // namespace

void study_smoothfbo(StudyRun& run) {
  const double rate = adjoint_rate(run);
  follow_fast_drift(run, rate);
  check_limits(run, rate);
}

}  // namespace bilevel
