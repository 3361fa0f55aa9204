#include "studies/study.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <limits>
#include <map>
#include <memory>
#include <optional>

#include "bilevel/hypergrad/implicit.h"
#include "bilevel/inner/newton_cg.h"
#include "bilevel/inner/step_size.h"
#include "bilevel/linear/dense.h"
#include "bilevel/oracle/choice.h"
#include "bilevel/problem/dataset.h"
#include "studies/images.h"
#include "tasks/experiment.h"
#include "tasks/supervised.h"

namespace bilevel {
namespace {

// --- Two tasks ---

constexpr int64_t kBatch = 256;

struct Workload {
  std::string name;
  SupervisedOptions options;
  SupervisedData data;

  Task task() const {
    Task made;
    made.name = "supervised";
    made.problem = std::make_unique<SupervisedProblem>(options, data);
    return made;
  }
};

/// A weight for each of 2,000 images, half of which have a label drawn at random; 50 principal components, softmax regression.
Workload cleaning(int64_t seed) {
  constexpr int64_t kInner = 2000, kOuter = 1000, kComponents = 50;
  const auto [pixels, labels] = draw_fashion("baselines", "train", kInner + kOuter, seed);
  const auto [test_pixels, test_labels] = draw_fashion("baselines", "test", 2000, seed);
  const at::Tensor flat = pixels.flatten(1).to(at::kDouble), mean = flat.narrow(0, 0, kInner).mean(0);
  const at::Tensor centred = flat.narrow(0, 0, kInner) - mean;
  const auto eigen = at::linalg_eigh(centred.t().mm(centred) / kInner);
  const at::Tensor axes = std::get<1>(eigen).narrow(1, 784 - kComponents, kComponents);
  const double scale = std::sqrt(kComponents / std::get<0>(eigen).narrow(0, 784 - kComponents, kComponents).sum().item<double>());
  const auto components = [&](const at::Tensor& images) { return (images - mean).mm(axes) * scale; };
  const Stream noise(static_cast<uint64_t>(seed), "baselines labels");
  const at::Tensor right = labels.narrow(0, 0, kInner);
  Workload load{"cleaning", {}, {}};
  load.data.inner = {components(flat.narrow(0, 0, kInner)),
                     at::where(noise.at(0).uniform({kInner}) < 0.5, noise.at(1).integers(10, {kInner}), right)};
  load.data.outer = {components(flat.narrow(0, kInner, kOuter)), labels.narrow(0, kInner, kOuter)};
  load.data.test = {components(test_pixels.flatten(1).to(at::kDouble)), test_labels};
  load.options.hyperparameters = {{.kind = Hyperparameter::Kind::kSampleWeight, .constraint = Constraint::box(-6.0, 6.0)}};
  load.options.l2 = 0.02;
  load.options.l2_bias = true;
  load.options.outputs = 10;
  load.options.dtype = at::kDouble;
  return load;
}

/// A ridge for each of the 64 pixels of the digits and of 64 columns of noise beside them; softmax regression on 400 images.
Workload regularisation(int64_t seed) {
  constexpr int64_t kInner = 400, kOuter = 400, kNoise = 64;
  DataSpec spec;
  spec.builtin = "digits";
  spec.dtype = at::kDouble;
  const Dataset all = load_dataset(spec);
  const Stream stream(static_cast<uint64_t>(seed), "baselines digits");
  const Dataset digits = all.select(stream.at(0).permutation(all.size()));
  const at::Tensor pixels = digits.features.flatten(1) / digits.features.max();
  const at::Tensor X = at::cat({pixels, 0.5 * stream.at(1).normal({all.size(), kNoise})}, 1);
  const auto take = [&](int64_t from, int64_t count) -> Samples {
    return {X.narrow(0, from, count), digits.labels.narrow(0, from, count)};
  };
  Workload load{"regularisation", {}, {}};
  load.data.inner = take(0, kInner);
  load.data.outer = take(kInner, kOuter);
  load.data.test = take(kInner + kOuter, all.size() - kInner - kOuter);
  load.options.hyperparameters = {{.kind = Hyperparameter::Kind::kL2,
                                   .map = Hyperparameter::Map::kExp,
                                   .init = at::scalar_tensor(-4.0, at::kDouble),
                                   .constraint = Constraint::box(-9.0, 1.0),
                                   .per = Hyperparameter::Per::kFeature}};
  load.options.outputs = 10;
  load.options.dtype = at::kDouble;
  return load;
}

struct Point {
  at::Tensor y;
  double loss = 0, accuracy = 0;
};

/// The inner problem solved, and what f and the test samples say there.
Point solved(const Problem& problem, const at::Tensor& x) {
  const auto oracle = make_oracle(problem);
  const InnerSolution solution =
      NewtonCg({.max_iterations = 200, .tolerance = 1e-10}).solve(*oracle, x, 0, {.y = problem.initial_inner(x, 0)}, {});
  return {solution.y, oracle->outer_value(x, solution.y, {}).item<double>(),
          100 * problem.metrics(x, solution.y).at("test_accuracy")};
}

// --- Methods: what B1 to B15 are in a configuration ---

struct Method {
  std::string id, name;
  std::string hypergradient;  // of [hypergradient]
  std::string inner = "steps = 10", outer = "";
  std::string algorithm = "double-loop";
  bool boxed_only = false;  // searches in a box with few dimensions

  bool single_loop() const { return algorithm != "double-loop" && !boxed_only; }
  bool estimates() const { return algorithm == "double-loop" && outer.empty() && inner == "steps = 10"; }
};

std::vector<Method> methods() {
  const std::string cg = "estimator = \"implicit\"\nsolver = \"cg\"\n";
  return {
      {"B1", "unrolled", "estimator = \"unrolled\""},
      {"B1", "unrolled, last 5 steps", "estimator = \"unrolled\"\nsteps = 5"},
      {"B1", "unrolled, checkpoints", "estimator = \"unrolled\"\nmemory = \"checkpoints\""},
      {"B2", "Neumann, 20 products", "estimator = \"implicit\"\nsolver = \"neumann\"\niterations = 20"},
      {"B3", "CG, 20 products", cg + "iterations = 20"},
      {"B3", "CG, 20 products, damping 0.1", cg + "iterations = 20\ndamping = 0.1"},
      {"B4", "Nyström, rank 20", "estimator = \"implicit\"\nsolver = \"nystrom\"\nrank = 20"},
      {"B5", "T1–T2", "estimator = \"t1-t2\""},
      {"B5", "identity", "estimator = \"identity\""},
      {"B5", "DARTS", "estimator = \"darts\""},
      {"B5", "one-step", "estimator = \"one-step\""},
      {"B6", "SAMA", "estimator = \"sama\""},
      {"B7", "StocBiO: 10 sgd steps on q from zero",
       "estimator = \"implicit\"\nsolver = \"sgd\"\niterations = 10\nhvp_batch = 256\nwarm_start = false"},
      {"B8", "AmIGO: 10 sgd steps on q, warm", "estimator = \"implicit\"\nsolver = \"sgd\"\niterations = 10\nhvp_batch = 256"},
      {"B9", "SOBA", "", "batch = 256", "batch = 256", "soba"},
      {"B9", "SABA", "", "batch = 256", "batch = 256", "saba"},
      {"B9", "MA-SOBA", "", "batch = 256", "batch = 256", "ma-soba"},
      {"B9", "SRBA", "", "batch = 256", "batch = 256", "srba"},
      {"B10", "BOME, 5 inner steps", "", "batch = 256\nsteps = 5", "batch = 256", "bome"},
      {"B11, B12", "penalty, central difference", "estimator = \"penalty\"\nsteps = 5"},
      {"B11, B12", "penalty, forward difference (F2SA, V-PBGD)", "estimator = \"penalty\"\nsteps = 5\ndifference = \"forward\""},
      {"B13", "SOBOW: one inner step, CG 5, window 10, weights 0.9^i", cg + "iterations = 5", "steps = 1",
       "smoothing = 10\nsmoothing_decay = 0.9"},
      {"B14", "OBBO in Adam's metric: window 10", cg + "iterations = 20", "steps = 10", "smoothing = 10"},
      {"B15", "random search", "", "steps = 200", "", "random-search", true},
      {"B15", "PBT", "", "steps = 20", "", "pbt", true},
  };
}

Experiment experiment(const Workload& load, const Method& method, double lr, int64_t seed) {
  std::string text;
  const bool single = method.single_loop(), searches = method.boxed_only;
  text += "[inner]\n" + method.inner + "\n";
  if (!single) text += fmt::format("batch = {}\n", kBatch);
  if (!method.hypergradient.empty()) text += "[hypergradient]\nbound_every = 0\n" + method.hypergradient + "\n";
  text += "[outer]\nsteps = 1000000\n" + method.outer + "\n";
  if (!searches) text += fmt::format("lr = {}\n", lr);
  if (!searches && !single) text += fmt::format("batch = {}\n", kBatch);
  if (method.algorithm == "pbt") text += "[outer.population]\nmembers = 10\nexploit_every = 2\n";
  if (method.algorithm == "random-search") text += "[outer.population]\nmembers = 15\n";
  text += fmt::format("[run]\nalgorithm = \"{}\"\nseed = {}\nthreads = 1\n", method.algorithm, seed);
  return Experiment(Config::parse(text, "baselines"), [&load](const Config&, c10::Device) { return load.task(); });
}

/// What was asked of the oracle, in calls of a batch: one of all samples is worth as many as it has batches.
double calls(const Cost& cost) { return static_cast<double>(cost.samples) / kBatch; }

/// What is left of x once so many calls of the oracle have been spent.
at::Tensor spend(const Workload& load, const Method& method, double lr, double budget, int64_t seed) {
  const Experiment run = experiment(load, method, lr, seed);
  State state = run.algorithm().init();
  at::Tensor x = state.tensor("x");
  while (calls(run.oracle().cost()) < budget) {
    if (failed(run.algorithm().step(state, 1).status)) break;
    x = state.tensor("x");
    if (!x.isfinite().all().item<bool>()) break;
  }
  return x;
}

// --- One hypergradient of each estimator against the exact one ---

struct Judged {
  double error = 0, cosine = 0;
  Cost cost;
};

Judged judge(const Workload& load, const Method& method, const at::Tensor& exact, double lr) {
  const std::string rule = method.name == "SAMA" ? "rule = \"adam\"\nlr = 0.05" : fmt::format("lr = {}", lr);
  const std::string text = fmt::format("[inner]\nsteps = 100\n{}\n[hypergradient]\nbound_every = 0\n{}\n[run]\nthreads = 1\n",
                                       rule, method.hypergradient);
  const Experiment one(Config::parse(text, "baselines"), [&load](const Config&, c10::Device) { return load.task(); });
  const DoubleLoop& loop = one.double_loop("the study baselines");
  const Hypergradient h = loop.hypergradient(loop.init());
  return {((h.value - exact).norm() / exact.norm()).item<double>(),
          (h.value.dot(exact) / (h.value.norm() * exact.norm())).item<double>(), h.cost};
}

struct Reference {
  at::Tensor hypergradient;
  double lr = 0;  // 1/L of the inner loss at the start
};

Reference reference(const Workload& load) {
  const Task task = load.task();
  const Problem& problem = *task.problem;
  const at::Tensor x = problem.initial_outer();
  const auto oracle = make_oracle(problem);
  InnerSolution solution;
  solution.y = solved(problem, x).y;
  const NewtonCg solver({});
  EstimatorInput input{*oracle, solver, x, solution, {}, {}, {}};
  return {Implicit(std::make_unique<Dense>(DenseOptions{})).estimate(input).value,
          1 / largest_curvature(*oracle->linearize_inner(x, problem.initial_inner(x, 0), {}))};
}

void judge_estimators(StudyRun& run, const std::vector<int64_t>& seeds) {
  for (const bool cleans : {false, true}) {
    std::map<std::string, std::vector<Judged>> all;
    for (const int64_t seed : seeds) {
      const Workload load = cleans ? cleaning(seed) : regularisation(seed);
      const auto [exact, lr] = reference(load);
      for (const Method& method : methods()) {
        if (method.estimates()) all[method.name].push_back(judge(load, method, exact, lr));
      }
      const auto last = [&](const char* name) { return all.at(name).back(); };
      if (cleans) {
        run.measure("cg-beats-neumann", last("CG, 20 products").error / last("Neumann, 20 products").error);
        run.measure("nystrom-errs-more-than-cg", last("Nyström, rank 20").error / last("CG, 20 products").error);
        run.measure("identity-points-elsewhere", last("identity").cosine / last("CG, 20 products").cosine);
        run.measure("truncation-errs", last("unrolled, last 5 steps").error / last("unrolled").error);
      }
      run.measure("checkpoints-change-nothing", std::abs(last("unrolled, checkpoints").error - last("unrolled").error));
      double products = 0;
      for (const char* name : {"DARTS", "SAMA", "penalty, central difference", "penalty, forward difference (F2SA, V-PBGD)"}) {
        products += static_cast<double>(last(name).cost.hvps + last(name).cost.cross_products);
      }
      run.measure("first-order-methods", products);
    }
    Table table{.title = fmt::format("One hypergradient after 100 inner steps from zero: {}",
                                     cleans ? "a weight for each of 2,000 samples" : "a ridge for each of 128 features"),
                .columns = {{"", false},
                            {"method", false},
                            {"relative error", true},
                            {"cosine", true},
                            {"gradients", true},
                            {"HVPs", true},
                            {"cross products", true},
                            {"milliseconds", true},
                            {"peak kB", true}},
                .rows = {}};
    for (const Method& method : methods()) {
      if (!method.estimates()) continue;
      const std::vector<Judged>& found = all.at(method.name);
      const auto mean = [&](auto&& of) {
        double sum = 0;
        for (const Judged& one : found) sum += of(one) / static_cast<double>(found.size());
        return sum;
      };
      const Cost& cost = found.back().cost;
      table.rows.push_back(
          {{Cell(method.id), Cell(method.name), Cell(fmt::format("{:.2g}", mean([](const Judged& j) { return j.error; }))),
            Cell(fmt::format("{:.3f}", mean([](const Judged& j) { return j.cosine; }))), Cell(std::to_string(cost.gradients)),
            Cell(std::to_string(cost.hvps)), Cell(std::to_string(cost.cross_products)),
            Cell(fmt::format("{:.2g}", 1e3 * mean([](const Judged& j) { return j.cost.seconds; }))),
            Cell(fmt::format("{:.0f}", static_cast<double>(cost.peak_bytes) / 1e3))}});
    }
    run.show(std::move(table));
  }
}

// --- Whole runs at one budget ---

constexpr int64_t kTuningSeed = 1000;

struct Standing {
  Method method;
  double lr = 0;
  std::vector<double> losses, accuracies;
};

/// Workloads of one task: the first is the one that step sizes are chosen on.
Standing stand(const Method& method, const std::vector<Workload>& loads, const std::vector<double>& rates, double budget) {
  Standing standing{method, rates.front(), {}, {}};
  const auto reached = [&](double lr, size_t i) {
    return solved(*loads[i].task().problem, spend(loads[i], method, lr, budget, static_cast<int64_t>(i)));
  };
  if (!method.boxed_only && rates.size() > 1) {
    double least = std::numeric_limits<double>::infinity();
    for (const double lr : rates) {
      const double loss = reached(lr, 0).loss;
      if (loss < least) least = loss, standing.lr = lr;
    }
  }
  for (size_t i = 1; i < loads.size(); ++i) {
    const Point end = reached(standing.lr, i);
    standing.losses.push_back(end.loss);
    standing.accuracies.push_back(end.accuracy);
  }
  return standing;
}

std::string with_error(const std::vector<double>& values, int digits) {
  const at::Tensor all = at::tensor(values, at::kDouble);
  const double error = values.size() > 1 ? (all.std() / std::sqrt(static_cast<double>(values.size()))).item<double>() : 0.0;
  return fmt::format("{:.{}f} ± {:.{}f}", all.mean().item<double>(), digits, error, digits);
}

void compare_runs(StudyRun& run, const std::vector<int64_t>& seeds) {
  const auto budget = static_cast<double>(run.setting<int64_t>("budget"));
  const auto rates = run.setting<std::vector<double>>("rates"),
             single_rates = run.setting<std::vector<double>>("single_loop_rates");
  BarChart picture{.title = "Validation loss after the budget, a ridge for each feature",
                   .label_name = "method",
                   .value_label = "validation loss",
                   .labels = {},
                   .series = {{"validation loss", {}}},
                   .horizontal = true};
  for (const bool cleans : {false, true}) {
    std::map<std::string, Standing> all;
    Table table{
        .title = fmt::format("After {:.0f} oracle calls of 256 samples: {}", budget,
                             cleans ? "a weight for each of 2,000 samples" : "a ridge for each of 128 features"),
        .columns = {{"", false}, {"method", false}, {"outer lr", true}, {"validation loss", true}, {"test accuracy", true}},
        .rows = {}};
    std::vector<Workload> loads = {cleans ? cleaning(kTuningSeed) : regularisation(kTuningSeed)};
    std::vector<double> start;
    for (const int64_t seed : seeds) {
      loads.push_back(cleans ? cleaning(seed) : regularisation(seed));
      const Task task = loads.back().task();
      start.push_back(solved(*task.problem, task.problem->initial_outer()).loss);
    }
    const std::vector<Method> list = methods();
    for (size_t i = 0; i < list.size(); ++i) {
      const Method& method = list[i];
      run.progress(method.name, 0.2 + 0.8 * (static_cast<double>(i) / static_cast<double>(list.size()) + (cleans ? 1 : 0)) / 2);
      if ((cleans && method.boxed_only) || method.name == "SAMA") continue;  // SAMA: with sgd inside it is DARTS
      const bool single = method.single_loop();
      const Standing& one = all[method.name] = stand(method, loads, single ? single_rates : rates, budget);
      table.rows.push_back(
          {{Cell(method.id), Cell(method.name), Cell(method.boxed_only ? std::string("–") : fmt::format("{:g}", one.lr)),
            Cell(with_error(one.losses, 4)), Cell(with_error(one.accuracies, 1))}});
      if (!cleans) {
        picture.labels.push_back(method.name);
        picture.series[0].values.push_back(at::tensor(one.losses, at::kDouble).mean().item<double>());
      }
    }
    table.rows.push_back({{Cell(""), Cell("where all begin"), Cell("–"), Cell(with_error(start, 4)), Cell("")}});
    run.show(std::move(table));
    for (size_t i = 0; i < seeds.size(); ++i) {
      const auto gained = [&](const char* name) { return start[i] - all.at(name).losses[i]; };
      if (!cleans) {
        run.measure("gradients-beat-random-search", gained("random search") / gained("CG, 20 products"));
        run.measure("gradients-beat-pbt", gained("PBT") / gained("CG, 20 products"));
        run.measure("second-order-helps", gained("identity") / gained("CG, 20 products"));
      } else {
        run.measure("single-loop-is-cheaper", std::max(gained("SOBA"), gained("SABA")) / gained("CG, 20 products"));
        run.measure("penalty-needs-no-products", gained("penalty, central difference") / gained("CG, 20 products"));
      }
    }
  }
  run.picture(std::move(picture));
}

}  // namespace

void study_baselines(StudyRun& run) {
  const std::vector<int64_t> seeds = run.seeds();
  run.progress("estimators", 0.0);
  judge_estimators(run, seeds);
  compare_runs(run, seeds);
}

}  // namespace bilevel
