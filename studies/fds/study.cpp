#include "studies/study.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "bilevel/algorithm/projection.h"
#include "bilevel/core/memory_meter.h"
#include "bilevel/core/stream.h"
#include "bilevel/hypergrad/forward.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/outer/sign.h"
#include "bilevel/problem/dataset.h"
#include "tasks/supervised.h"

namespace bilevel {
namespace {

// --- Theorem 4.1: derivatives g_t = μ_t + σ n_t, |μ_{t+1} − μ_t| ≤ ε, in windows of W, each replaced by its window's mean ---

struct Theorem {
  int64_t steps, window, draws;
  double noise, drift, correlation;
};

/// The mean of (window mean of μ + n − μ)² over steps and draws; μ, n [draws or 1, T]. Steps past the last whole window are left
/// out.
double squared_error(const at::Tensor& mu, const at::Tensor& noise, int64_t window) {
  const auto windows = [window](const at::Tensor& all) {
    return all.narrow(1, 0, all.size(1) / window * window).reshape({all.size(0), all.size(1) / window, window});
  };
  return (windows(mu + noise).mean(2, true) - windows(mu)).square().mean().item<double>();
}

void check_theorem(StudyRun& run, const Theorem& theorem, int64_t seed) {
  const Stream stream(static_cast<uint64_t>(seed), "fds theorem");
  const double W = static_cast<double>(theorem.window), variance = theorem.noise * theorem.noise;
  const double c = theorem.correlation, slack = theorem.drift * theorem.drift * (W * W - 1) / 12;
  const std::vector<int64_t> sizes{theorem.draws, theorem.steps};
  const at::Tensor noise = theorem.noise * stream.at(0).normal(sizes), still = at::zeros({1, theorem.steps}, at::kDouble);
  run.measure("error-without-drift", squared_error(still, noise, theorem.window) / (variance / W));

  const at::Tensor ramp = theorem.drift * at::arange(theorem.steps, at::kDouble).unsqueeze(0);
  run.measure("error-with-the-greatest-drift", squared_error(ramp, noise, theorem.window) / (variance / W + slack));

  // One common part in each window and one of its own for each step: correlation c within a window.
  const at::Tensor common =
      stream.at(1).normal({theorem.draws, theorem.steps / theorem.window}).repeat_interleave(theorem.window, 1);
  const at::Tensor correlated = std::sqrt(c) * theorem.noise * common + std::sqrt(1 - c) * noise.narrow(1, 0, common.size(1));
  run.measure("error-with-correlated-noise",
              squared_error(still.narrow(1, 0, common.size(1)), correlated, theorem.window) / ((1 + c * (W - 1)) / W * variance));

  const at::Tensor walk = (theorem.drift * (2 * stream.at(2).uniform(sizes) - 1)).cumsum(1);
  run.measure("bound-with-random-drift", squared_error(walk, noise, theorem.window) / (variance / W + slack));

  int64_t best = 1;
  double least = squared_error(ramp, noise, 1);
  for (int64_t window = 2; window <= theorem.window; ++window) {
    const double error = squared_error(ramp, noise, window);
    if (error < least) {
      least = error;
      best = window;
    }
  }
  run.measure("best-window", static_cast<double>(best) / std::cbrt(6 * variance / (theorem.drift * theorem.drift)));
}

/// Squared error against the window, measured and by the theorem: noise that sharing takes away, and bias that it brings.
LineChart picture_of_theorem(const Theorem& theorem) {
  const Stream stream(0, "fds picture");
  const at::Tensor noise = theorem.noise * stream.at(0).normal({theorem.draws, theorem.steps});
  const at::Tensor ramp = theorem.drift * at::arange(theorem.steps, at::kDouble).unsqueeze(0);
  const at::Tensor walk = (theorem.drift * (2 * stream.at(1).uniform({theorem.draws, theorem.steps}) - 1)).cumsum(1);
  LineChart chart{
      .title = "Squared error of a derivative shared by W steps",
      .x_label = "W",
      .y_label = "squared error",
      .log_y = true,
      .series = {
          {"steady", {}, {}}, {"random drift", {}, {}}, {"greatest drift", {}, {}}, {"theorem 4.1, greatest drift", {}, {}}}};
  chart.log_x = true;
  for (const int64_t window : {1, 2, 4, 5, 8, 10, 20, 40, 80}) {
    const double W = static_cast<double>(window);
    const double values[] = {squared_error(at::zeros_like(ramp), noise, window), squared_error(walk, noise, window),
                             squared_error(ramp, noise, window),
                             theorem.noise * theorem.noise / W + theorem.drift * theorem.drift * (W * W - 1) / 12};
    for (size_t i = 0; i < chart.series.size(); ++i) {
      chart.series[i].x.push_back(W);
      chart.series[i].y.push_back(values[i]);
    }
  }
  return chart;
}

// --- Training with a schedule: x = (step size of each window, momentum, weight decay) ---

using Kind = Hyperparameter::Kind;
using Per = Hyperparameter::Per;

struct Training {
  int64_t steps, windows, batch;
};

/// Digits of which some have a wrong label, in training and validation alike; test labels are right.
struct NoisyDigits {
  at::Tensor features, labels;  // of training and validation together
  Samples test;
};

NoisyDigits noisy_digits(double noise, int64_t test, int64_t seed) {
  DataSpec spec;
  spec.builtin = "digits";
  spec.dtype = at::kDouble;
  const Dataset all = load_dataset(spec);
  const Stream stream(static_cast<uint64_t>(seed), "fds digits");
  const Dataset shuffled = all.select(stream.at(0).permutation(all.size()));
  const int64_t n = all.size() - test;
  const at::Tensor labels = shuffled.labels.narrow(0, 0, n);
  const at::Tensor other = at::remainder(labels + 1 + stream.at(1).integers(9, {n}), 10);
  return {shuffled.features.narrow(0, 0, n),
          at::where(stream.at(2).uniform({n}) < noise, other, labels),
          {shuffled.features.narrow(0, n, test), shuffled.labels.narrow(0, n, test)}};
}

Hyperparameter hyperparameter(Kind kind, double upper) {
  return {.kind = kind,
          .map = Hyperparameter::Map::kIdentity,
          .init = at::scalar_tensor(0.0, at::kDouble),
          .constraint = Constraint::box(0.0, upper)};
}

std::unique_ptr<SupervisedProblem> problem_of(const Training& training, SupervisedData data, int64_t hidden, int64_t seed) {
  SupervisedOptions options;
  options.model.kind = "mlp";
  options.model.hidden = {hidden};
  options.dtype = at::kDouble;
  options.init = "random";
  options.seed = seed;
  options.steps = training.steps;
  options.outputs = 10;
  Hyperparameter lr = hyperparameter(Kind::kStepSize, 1.0);
  lr.per = Per::kStep;
  lr.window = training.steps / training.windows;
  options.hyperparameters = {lr, hyperparameter(Kind::kMomentum, 0.99), hyperparameter(Kind::kWeightDecay, 0.1)};
  return std::make_unique<SupervisedProblem>(std::move(options), std::move(data));
}

RuleSolver solver_of(const Training& training, const Problem& problem, int64_t seed) {
  SgdRuleOptions sgd;
  sgd.learned = {"lr", "momentum", "weight_decay"};
  RuleSolverOptions options;
  options.steps = training.steps;
  return {std::make_unique<SgdRule>(sgd), options,
          BatchPlan::shuffled(problem.inner_samples(), training.batch, Stream(static_cast<uint64_t>(seed), "fds batches"))};
}

/// A split of the pool into training and validation samples, new weights and new batches: what each training of a search gets.
struct Trial {
  Training training;
  std::unique_ptr<SupervisedProblem> problem;
  RuleSolver solver;

  Trial(const Training& how, const NoisyDigits& digits, int64_t validation, int64_t hidden, int64_t seed)
      : training(how),
        problem(problem_of(how, split(digits, validation, seed), hidden, seed)),
        solver(solver_of(how, *problem, seed)) {}

  static SupervisedData split(const NoisyDigits& digits, int64_t validation, int64_t seed) {
    const int64_t n = digits.labels.size(0);
    const at::Tensor order = Stream(static_cast<uint64_t>(seed), "fds split").at(0).permutation(n);
    const auto take = [&](const at::Tensor& rows) -> Samples {
      return {digits.features.index_select(0, rows), digits.labels.index_select(0, rows)};
    };
    return {.inner = take(order.narrow(0, validation, n - validation)),
            .outer = take(order.narrow(0, 0, validation)),
            .test = digits.test,
            .sources = {},
            .sample_weights = {},
            .gram = {}};
  }

  InnerSolution train(const Oracle& oracle, const at::Tensor& x, const TrajectoryPolicy& policy = {}) const {
    return solver.solve(oracle, x, 0, {.y = problem->initial_inner(x, 0)}, policy);
  }
};

Hypergradient hypergradient(const Estimator& estimator, const Trial& trial, const Oracle& oracle, const at::Tensor& x) {
  InnerSolution solution = trial.train(oracle, x, estimator.trajectory());
  EstimatorInput input{oracle, trial.solver, x, solution, {}, {}, {}};
  return estimator.estimate(input);
}

// --- Searches for a schedule ---

struct Search {
  Training training;
  int64_t trainings, validation, hidden;
  double noise;
  NoisyDigits digits;
  int64_t seed;

  /// The k-th training of a search; the one past the last is the retraining that all searches are compared by.
  Trial trial(int64_t k, const Training& how) const { return {how, digits, validation, hidden, 1000 * seed + k}; }
  Trial trial(int64_t k) const { return trial(k, training); }
};

double test_accuracy(const Search& search, const at::Tensor& x) {
  const Trial trial = search.trial(search.trainings);
  return 100 * trial.problem->metrics(x, trial.train(AutodiffOracle(*trial.problem), x).y).at("test_accuracy");
}

struct Learned {
  at::Tensor x;
  double oracle_calls = 0;  // over those of one training
};

/// From zero; the first training is a tenth as long, for nothing is known yet.
Learned learn_schedule(const Search& search) {
  const Training& training = search.training;
  std::vector<double> steps(static_cast<size_t>(training.windows), 0.1);
  steps.insert(steps.end(), {0.1, 3e-3});
  const OuterSign rule({.lr = steps});
  State state;
  Learned learned{at::zeros({training.windows + 2}, at::kDouble)};
  for (int64_t k = 0; k < search.trainings; ++k) {
    const Trial trial = search.trial(k, k == 0 ? Training{training.steps / 10, training.windows, training.batch} : training);
    const AutodiffOracle plain(*trial.problem);
    const CountedOracle oracle(plain);
    const Hypergradient h = hypergradient(Forward(), trial, oracle, learned.x);
    learned.x = project(*trial.problem, rule.step(state, learned.x, h.value));
    const Cost cost = oracle.cost();  // ∂x∂y g is zero here: no product of it is needed
    learned.oracle_calls += static_cast<double>(cost.gradients + cost.hvps) / static_cast<double>(training.steps);
  }
  return learned;
}

/// The best validation loss of `trainings` random points in the box that the learned schedule could have reached.
at::Tensor random_search(const Search& search, int64_t trainings) {
  const int64_t windows = search.training.windows;
  at::Tensor reach = at::ones({windows + 2}, at::kDouble);
  reach[windows] = 0.99;
  reach[windows + 1] = 0.03;
  const Stream stream(static_cast<uint64_t>(search.seed), "fds random search");
  at::Tensor best;
  double least = std::numeric_limits<double>::infinity();
  for (int64_t k = 0; k < trainings; ++k) {
    const Trial trial = search.trial(k % search.trainings);
    const at::Tensor x = reach * stream.at(k).uniform({windows + 2});
    const AutodiffOracle oracle(*trial.problem);
    const double loss = oracle.outer_value(x, trial.train(oracle, x).y, {}).item<double>();
    if (!best.defined() || loss < least) {
      best = x;
      least = std::isfinite(loss) ? loss : least;
    }
  }
  return best;
}

/// Greedy: the step size follows g_tᵀ g_{t−1}, from zero (hypergradient descent, Baydin et al. 2018). Returns y_T.
at::Tensor train_greedily(const Trial& trial, double beta) {
  const AutodiffOracle oracle(*trial.problem);
  const at::Tensor x = trial.problem->initial_outer();
  at::Tensor y = trial.problem->initial_inner(x, 0), before;
  double lr = 0;
  for (int64_t t = 0; t < trial.training.steps; ++t) {
    const at::Tensor g = oracle.inner(x, y, trial.solver.batch(t, 0)).y;
    if (before.defined()) lr = std::clamp(lr + beta * g.dot(before).item<double>(), 0.0, 1.0);
    y = y - lr * g;
    before = g;
  }
  return y;
}

/// Test accuracy with the rate of the greedy rule that validates best, of as many as there are trainings.
double greedy_accuracy(const Search& search) {
  double best = 0, least = std::numeric_limits<double>::infinity();
  for (int64_t k = 0; k < search.trainings; ++k) {
    const double beta = std::pow(10.0, -4 + 5.0 * static_cast<double>(k) / static_cast<double>(search.trainings - 1));
    const Trial trial = search.trial(k);
    const at::Tensor x = trial.problem->initial_outer();
    const double loss = AutodiffOracle(*trial.problem).outer_value(x, train_greedily(trial, beta), {}).item<double>();
    if (loss < least) {
      least = loss;
      best = beta;
    }
  }
  const Trial last = search.trial(search.trainings);
  return 100 * last.problem->metrics(last.problem->initial_outer(), train_greedily(last, best)).at("test_accuracy");
}

void compare_searches(StudyRun& run, const Search& search, LineChart& schedules, Table& accuracies) {
  const Learned learned = learn_schedule(search);
  const auto equal_calls = static_cast<int64_t>(std::lround(learned.oracle_calls));
  const double fds = test_accuracy(search, learned.x), greedy = greedy_accuracy(search);
  const double random = test_accuracy(search, random_search(search, search.trainings));
  const double random_at_equal_calls = test_accuracy(search, random_search(search, equal_calls));
  at::Tensor usual = at::full_like(learned.x, 0.1);
  usual[search.training.windows] = 0.9;
  usual[search.training.windows + 1] = 5e-4;
  run.measure("above-greedy", fds - greedy);
  run.measure("above-random-search", fds - random);
  run.measure("above-random-search-at-equal-calls", fds - random_at_equal_calls);

  LineChart::Series series{fmt::format("seed {}", search.seed), {}, {}};
  const int64_t window = search.training.steps / search.training.windows;
  for (int64_t t = 0; t < search.training.steps; t += window) {
    for (const int64_t at : {t, t + window - 1}) {
      series.x.push_back(static_cast<double>(at));
      series.y.push_back(learned.x[t / window].item<double>());
    }
  }
  schedules.series.push_back(std::move(series));
  accuracies.rows.push_back(
      {{Cell(std::to_string(search.seed)), Cell(format_fixed(fds, 1)), Cell(format_fixed(greedy, 1)),
        Cell(format_fixed(random, 1)),
        Cell(fmt::format("{} ({} trainings)", format_fixed(random_at_equal_calls, 1), equal_calls)),
        Cell(format_fixed(test_accuracy(search, usual), 1)), Cell(learned.x[search.training.windows].item<double>()),
        Cell(learned.x[search.training.windows + 1].item<double>())}});
}

void learn_from_zero(StudyRun& run) {
  const int64_t steps = run.setting<int64_t>("search_steps");
  LineChart schedules{.title = "Step sizes learned from zero", .x_label = "step", .y_label = "step size", .series = {}};
  Table accuracies{.title = "Test accuracy in per cent",
                   .columns = {{"seed", true},
                               {"FDS", true},
                               {"greedy", true},
                               {"random search, as many trainings", true},
                               {"random search, as many oracle calls", true},
                               {"0.1, momentum 0.9, decay 5e-4", true},
                               {"learned momentum", true},
                               {"learned decay", true}},
                   .rows = {}};
  const std::vector<int64_t> seeds = run.seeds();
  const double noise = run.setting<double>("label_noise");
  const int64_t trainings = run.setting<int64_t>("trainings"), windows = run.setting<int64_t>("search_windows");
  if (!run.asks_for("above-greedy")) return;
  for (size_t i = 0; i < seeds.size(); ++i) {
    run.progress("searches", 0.02 + 0.45 * static_cast<double>(i) / static_cast<double>(seeds.size()));
    const Search search{{steps, windows, 64}, trainings, 400, 32, noise, noisy_digits(noise, 397, seeds[i]), seeds[i]};
    compare_searches(run, search, schedules, accuracies);
  }
  run.picture(std::move(schedules));
  run.show(std::move(accuracies));
}

// --- Signs: do runs that differ in weights, batches and split agree on the sign of a derivative shared by W steps? ---

/// The share of signs that agree with the majority, over the windows; derivatives by each step [runs, T].
double agreement(const at::Tensor& derivatives, int64_t window) {
  const int64_t runs = derivatives.size(0);
  const at::Tensor positive = derivatives.reshape({runs, -1, window}).sum(2).gt(0).sum(0).to(at::kDouble);
  return (at::max(positive, static_cast<double>(runs) - positive) / static_cast<double>(runs)).mean().item<double>();
}

void compare_signs(StudyRun& run) {
  const int64_t steps = run.setting<int64_t>("sign_steps"), runs = run.setting<int64_t>("sign_runs");
  const std::vector<int64_t> windows = run.setting<std::vector<int64_t>>("sign_windows"), seeds = run.seeds();
  if (!run.asks_for("signs-agree-more")) return;
  LineChart chart{.title = "Runs that agree on the sign of a derivative shared by W steps",
                  .x_label = "W",
                  .y_label = "share of runs",
                  .series = {}};
  for (size_t i = 0; i < seeds.size(); ++i) {
    run.progress("signs", 0.47 + 0.25 * static_cast<double>(i) / static_cast<double>(seeds.size()));
    const NoisyDigits digits = noisy_digits(run.setting<double>("label_noise"), 397, seeds[i]);
    const Training each{steps, steps, 64};
    std::vector<at::Tensor> rows;
    for (int64_t k = 0; k < runs; ++k) {
      const Trial trial(each, digits, 400, 32, 100000 + 1000 * seeds[i] + k);
      at::Tensor x = at::full({steps + 2}, 0.1, at::kDouble);
      x[steps] = 0.9;
      x[steps + 1] = 0.0;
      const AutodiffOracle oracle(*trial.problem);
      rows.push_back(
          hypergradient(Unrolled(), trial, oracle, x).value.narrow(0, 0, steps));  // the same as Forward's: a test says so
    }
    LineChart::Series series{fmt::format("seed {}", seeds[i]), {}, {}};
    for (const int64_t window : windows) {
      series.x.push_back(static_cast<double>(window));
      series.y.push_back(agreement(at::stack(rows), window));
    }
    run.measure("signs-agree-more", series.y.back() - series.y.front());
    chart.series.push_back(std::move(series));
  }
  run.show(std::move(chart));
}

// --- Long horizons: memory, and the derivative itself, on Fashion-MNIST ---

Samples fashion(const std::string& split, int64_t count) {
  DataSpec spec;
  spec.builtin = "fashion-mnist";
  spec.split = split;
  spec.count = count;
  spec.dtype = at::kDouble;
  const Dataset data = load_dataset(spec);
  return {data.features, data.labels};
}

struct Passed {
  at::Tensor value;
  double peak = 0;  // bytes, of training and hypergradient
};

Passed pass(const Estimator& estimator, int64_t steps, const SupervisedData& data) {
  const Training training{steps, 5, 64};
  const auto problem = problem_of(training, data, 16, 0);
  const RuleSolver solver = solver_of(training, *problem, 0);
  const at::Tensor x = at::tensor({0.1, 0.08, 0.06, 0.04, 0.02, 0.5, 1e-3}, at::kDouble);
  const AutodiffOracle oracle(*problem);
  const MemoryMeter meter;
  InnerSolution solution = solver.solve(oracle, x, 0, {.y = problem->initial_inner(x, 0)}, estimator.trajectory());
  EstimatorInput input{oracle, solver, x, solution, {}, {}, {}};
  const at::Tensor value = estimator.estimate(input).value;
  return {value, static_cast<double>(meter.peak_bytes())};
}

void go_far(StudyRun& run) {
  const std::vector<int64_t> steps = run.setting<std::vector<int64_t>>("horizons");
  const SupervisedData data{.inner = fashion("train", 2000),
                            .outer = fashion("test", 500),
                            .test = {},
                            .sources = {},
                            .sample_weights = {},
                            .gram = {}};
  Table memory{.title = "Peak memory of a training and its hypergradient",
               .columns = {{"steps", true}, {"forward", true}, {"reverse, checkpoints", true}},
               .rows = {}};
  std::vector<double> forward_peaks, reverse_peaks;
  for (size_t i = 0; i < steps.size(); ++i) {
    run.progress(fmt::format("{} steps", steps[i]), 0.72 + 0.05 * static_cast<double>(i));
    const Passed forward = pass(Forward(), steps[i], data);
    const Passed reverse = pass(Unrolled({.memory = Memory::kCheckpoints}), steps[i], data);
    forward_peaks.push_back(forward.peak);
    reverse_peaks.push_back(reverse.peak);
    memory.rows.push_back({{Cell(format_count(steps[i])), Cell(format_bytes(forward.peak)), Cell(format_bytes(reverse.peak))}});
    if (i + 1 == steps.size()) {
      run.measure("exact-over-the-horizon", ((forward.value - reverse.value).norm() / reverse.value.norm()).item<double>());
    }
  }
  run.measure("memory-flat", forward_peaks.back() / forward_peaks.front());
  run.measure("memory-of-reverse-mode", reverse_peaks.back() / reverse_peaks.front());
  run.show(std::move(memory));
}

}  // namespace

void study_fds(StudyRun& run) {
  const Theorem theorem{run.setting<int64_t>("theorem_steps"), run.setting<int64_t>("theorem_window"),
                        run.setting<int64_t>("theorem_draws"), run.setting<double>("theorem_noise"),
                        run.setting<double>("theorem_drift"),  run.setting<double>("theorem_correlation")};
  run.progress("theorem 4.1", 0);
  for (const int64_t seed : run.seeds()) check_theorem(run, theorem, seed);
  run.picture(picture_of_theorem(theorem));  // with --full one of the schedules comes in its place
  learn_from_zero(run);
  compare_signs(run);
  go_far(run);
}

}  // namespace bilevel
