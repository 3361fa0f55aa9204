#include "studies/study.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/algorithm/hpm.h"
#include "bilevel/core/stream.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/outer/adam.h"
#include "bilevel/outer/sgd.h"
#include "bilevel/problem/dataset.h"
#include "tasks/supervised.h"

namespace bilevel {
namespace {

struct Method {
  std::string name;
  bool hypergradient = true, exploits = true;
  Mutation mutation = Mutation::kTeacher;
};

const Method kHpm{"HPM"}, kWithoutTeacher{.name = "HPM without teacher", .mutation = Mutation::kRandom},
    kIndependent{.name = "independent hypergradients", .exploits = false},
    kPbt{.name = "PBT", .hypergradient = false, .mutation = Mutation::kRandom},
    kRandomSearch{.name = "random search", .hypergradient = false, .exploits = false, .mutation = Mutation::kRandom};

std::shared_ptr<const Estimator> estimator_of(const Method& method, int64_t horizon) {
  if (!method.hypergradient) return no_hypergradient();
  return std::make_shared<Unrolled>(UnrolledOptions{.steps = horizon});
}

HpmOptions options_of(const Method& method, int64_t members, int64_t exploit_every, int64_t seed) {
  return {.members = members,
          .exploit_every = method.exploits ? exploit_every : 0,
          .mutation = method.mutation,
          .seed = static_cast<uint64_t>(seed)};
}

// --- Test functions of h in the unit cube, their minimum taken off ---

at::Tensor branin(const at::Tensor& h) {
  const at::Tensor a = 15 * h[0] - 5, b = 15 * h[1];
  const at::Tensor valley = b - 5.1 / (4 * M_PI * M_PI) * a.square() + 5 / M_PI * a - 6;
  return valley.square() + 10 * (1 - 1 / (8 * M_PI)) * a.cos() + 10 - 0.39788735772973816;
}

at::Tensor hartmann(const at::Tensor& h) {
  const auto table = [](std::vector<double> rows) { return at::tensor(rows, at::kDouble).view({4, 6}); };
  static const at::Tensor weight = at::tensor({1.0, 1.2, 3.0, 3.2}, at::kDouble);
  static const at::Tensor A = table({10, 3,   17,  3.5, 1.7, 8, 0.05, 10, 17,   0.1, 8,   14,  //
                                     3,  3.5, 1.7, 10,  17,  8, 17,   8,  0.05, 10,  0.1, 14});
  static const at::Tensor P =
      table({0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886, 0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991,
             0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650, 0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381});
  return 3.3223680114155147 - weight.dot((-(A * (h - P).square()).sum(1)).exp());
}

struct Function {
  std::string name;
  at::Tensor (*value)(const at::Tensor& h);
  int64_t variables;
  double lr;
};

/// f is the function of h = x; y is there for form's sake.
class FunctionProblem final : public Problem {
 public:
  FunctionProblem(const Function& function, int64_t seed)
      : value_(function.value), start_(Stream(static_cast<uint64_t>(seed), "hpm start").at(0).uniform({function.variables})) {
    outer_.add("h", {function.variables});
    inner_.add("y", {1});
  }
  const Layout& outer_layout() const override { return outer_; }
  const Layout& inner_layout() const override { return inner_; }
  at::Tensor initial_outer() const override { return start_; }
  at::Tensor initial_inner(const at::Tensor&, int64_t) const override { return at::zeros({1}, at::kDouble); }
  at::Tensor inner_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const override { return 0.5 * y.dot(y); }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override { return value_(x) + 0 * y.sum(); }
  std::vector<Constraint> outer_constraints() const override { return {Constraint::box(0, 1)}; }

 private:
  at::Tensor (*value_)(const at::Tensor& h);
  at::Tensor start_;
  Layout outer_, inner_;
};

struct Search {
  int64_t members, steps, exploit_every;
};

/// The least value found up to each step, after 0, 1, …, steps updates.
std::vector<double> regrets(const Function& function, const Method& method, const Search& search, int64_t seed) {
  const FunctionProblem problem(function, seed);
  const AutodiffOracle oracle(problem);
  const auto make = [&](const Oracle& own) {
    RuleSolverOptions solver;
    solver.steps = 1;
    solver.lr = 1.0;
    return std::make_unique<DoubleLoop>(own, std::make_shared<RuleSolver>(std::make_unique<SgdRule>(SgdRuleOptions{}), solver),
                                        estimator_of(method, 1), std::make_shared<OuterSgd>(OuterSgdOptions{.lr = function.lr}),
                                        DoubleLoopOptions{});
  };
  const Hpm hpm(oracle, make, options_of(method, search.members, search.exploit_every, seed));
  State state = hpm.init();
  std::vector<double> least;
  for (int64_t k = 0; k <= search.steps; ++k) {
    const double value = (k < search.steps ? hpm.step(state, 1) : hpm.evaluate(state)).outer_loss;
    least.push_back(least.empty() ? value : std::min(least.back(), value));
  }
  return least;
}

/// log10 of how many times the regret a is b; what rounding leaves counts as 1e-12.
double orders(double a, double b) { return std::log10(std::max(a, 1e-12) / std::max(b, 1e-12)); }

void optimise(StudyRun& run, const Function& function, const Search& search, Table& table, LineChart& chart) {
  const std::vector<int64_t> seeds = run.seeds();
  const std::vector<Method> methods = {kHpm, kWithoutTeacher, kIndependent, kPbt};
  std::vector<std::vector<double>> at_end(methods.size()), half_way(methods.size()), mean(methods.size());
  std::vector<double> one_run, one_long_run;
  for (size_t i = 0; i < seeds.size(); ++i) {
    run.progress(function.name, 0.2 * static_cast<double>(i) / static_cast<double>(seeds.size()));
    for (size_t m = 0; m < methods.size(); ++m) {
      const std::vector<double> least = regrets(function, methods[m], search, seeds[i]);
      at_end[m].push_back(least.back());
      half_way[m].push_back(least[least.size() / 2]);
      mean[m].resize(least.size());
      for (size_t k = 0; k < least.size(); ++k) mean[m][k] += least[k] / static_cast<double>(seeds.size());
    }
    const std::vector<double> alone = regrets(function, kIndependent, {1, search.steps * search.members, 0}, seeds[i]);
    one_run.push_back(alone[static_cast<size_t>(search.steps)]);
    one_long_run.push_back(alone.back());
    const auto measure = [&](const char* what, double a, double b) { run.measure(function.name + what, orders(a, b)); };
    measure("-above-pbt", at_end[3][i], at_end[0][i]);
    measure("-above-one-run", one_run[i], at_end[0][i]);
    measure("-above-independent-runs", at_end[2][i], at_end[0][i]);
    measure("-teacher", half_way[1][i], half_way[0][i]);
    if (function.variables == 6) run.measure("one-run-stuck-more-often", (one_long_run[i] > 0.1) - (at_end[0][i] > 0.1));
  }
  const auto row = [&](const std::string& name, const std::vector<double>& values) {
    double sum = 0, stuck = 0;
    for (const double value : values) {
      sum += value;
      stuck += value > 0.1;
    }
    std::vector<double> sorted = values;
    std::sort(sorted.begin(), sorted.end());
    const auto n = static_cast<double>(values.size());
    table.rows.push_back({{Cell(function.name), Cell(name), Cell(sum / n), Cell(sorted[sorted.size() / 2]), Cell(stuck / n)}});
  };
  for (size_t m = 0; m < methods.size(); ++m) row(methods[m].name, at_end[m]);
  row("one run", one_run);
  row("one run, as many evaluations", one_long_run);
  for (size_t m = 0; m < methods.size(); ++m) {
    LineChart::Series series{methods[m].name, {}, {}};
    for (size_t k = 0; k < mean[m].size(); ++k) {
      series.x.push_back(static_cast<double>(k));
      series.y.push_back(mean[m][k]);
    }
    if (function.variables == 6) chart.series.push_back(std::move(series));
  }
}

void optimise_functions(StudyRun& run) {
  const Search search{run.setting<int64_t>("members"), run.setting<int64_t>("steps"), run.setting<int64_t>("exploit_every")};
  const Function functions[] = {{"branin", branin, 2, run.setting<double>("branin_lr")},
                                {"hartmann", hartmann, 6, run.setting<double>("hartmann_lr")}};
  Table table{.title = "Regret at the end",
              .columns = {{"function"}, {"method"}, {"mean", true}, {"median", true}, {"share above 0.1", true}},
              .rows = {}};
  LineChart chart{
      .title = "Hartmann's function: mean regret", .x_label = "step", .y_label = "regret", .log_y = true, .series = {}};
  for (const Function& function : functions) optimise(run, function, search, table, chart);
  run.picture(std::move(chart));
  run.show(std::move(table));
}

// --- Seven hyperparameters of a network ---

SupervisedData noisy_digits(double noise, int64_t seed) {
  DataSpec spec;
  spec.builtin = "digits";
  spec.dtype = at::kDouble;
  const Dataset all = load_dataset(spec);
  const Stream stream(static_cast<uint64_t>(seed), "hpm digits");
  const Dataset shuffled = all.select(stream.at(0).permutation(all.size()));
  const auto take = [&](int64_t first, int64_t count) -> Samples {
    return {shuffled.features.narrow(0, first, count), shuffled.labels.narrow(0, first, count)};
  };
  Samples train = take(0, 300);
  const at::Tensor other = at::remainder(train.labels + 1 + stream.at(1).integers(9, {300}), 10);
  train.labels = at::where(stream.at(2).uniform({300}) < noise, other, train.labels);
  return {.inner = train,
          .outer = take(300, 400),
          .test = take(700, all.size() - 700),
          .sources = {},
          .sample_weights = {},
          .gram = {}};
}

std::unique_ptr<SupervisedProblem> network(double noise, int64_t seed) {
  using Kind = Hyperparameter::Kind;
  using Map = Hyperparameter::Map;
  const auto hyperparameter = [](Kind kind, Map map, double lower, double upper) {
    return Hyperparameter{.kind = kind,
                          .map = map,
                          .init = at::scalar_tensor((lower + upper) / 2, at::kDouble),
                          .constraint = Constraint::box(lower, upper),
                          .per = kind == Kind::kMomentum ? Hyperparameter::Per::kOne : Hyperparameter::Per::kLayer};
  };
  SupervisedOptions options;
  options.model.kind = "mlp";
  options.model.hidden = {32, 32};
  options.dtype = at::kDouble;
  options.init = "random";
  options.seed = seed;
  options.outputs = 10;
  options.hyperparameters = {hyperparameter(Kind::kL2, Map::kExp, -10, 0), hyperparameter(Kind::kStepSize, Map::kExp, -6, 0),
                             hyperparameter(Kind::kMomentum, Map::kSigmoid, -3, 3)};
  return std::make_unique<SupervisedProblem>(std::move(options), noisy_digits(noise, seed));
}

struct NetworkSearch {
  int64_t members, steps, exploit_every, inner_steps, horizon;
  double noise;
};

struct Tuned {
  double validation_loss = std::numeric_limits<double>::infinity(), test_accuracy = 0;
  int64_t calls = 0;
};

/// After `steps` of the search, or as many as `calls` calls of the oracle allow.
Tuned tune(const NetworkSearch& search, const Method& method, double lr, int64_t seed, int64_t draw, int64_t calls) {
  const auto problem = network(search.noise, seed);
  const AutodiffOracle plain(*problem);
  const CountedOracle oracle(plain);
  const auto make = [&](const Oracle& own) {
    RuleSolverOptions solver;
    solver.steps = search.inner_steps;
    solver.carry_state = true;
    DoubleLoopOptions loop;
    loop.carry_rule_state = true;
    return std::make_unique<DoubleLoop>(
        own,
        std::make_shared<RuleSolver>(std::make_unique<SgdRule>(SgdRuleOptions{.learned = {"lr", "momentum"}}), solver,
                                     BatchPlan::shuffled(300, 50, Stream(static_cast<uint64_t>(seed), "hpm batches"))),
        estimator_of(method, search.horizon), std::make_shared<OuterAdam>(OuterAdamOptions{.lr = lr}), loop);
  };
  const Hpm hpm(oracle, make, options_of(method, search.members, search.exploit_every, 100 * seed + draw));
  State state = hpm.init();
  for (int64_t k = 0; method.hypergradient ? k < search.steps : oracle.cost().oracle_calls() < calls; ++k) hpm.step(state, 1);
  const int64_t taken = oracle.cost().oracle_calls();
  const Record last = hpm.evaluate(state);
  return {last.outer_loss, 100 * last.metrics.at("test_accuracy"), taken};
}

void tune_network(StudyRun& run) {
  const NetworkSearch search{run.setting<int64_t>("network_members"), run.setting<int64_t>("network_steps"),
                             run.setting<int64_t>("exploit_every"),   run.setting<int64_t>("inner_steps"),
                             run.setting<int64_t>("horizon"),         run.setting<double>("label_noise")};
  const auto seeds = run.setting<std::vector<int64_t>>("network_seeds");
  const auto lrs = run.setting<std::vector<double>>("network_lrs");
  if (!run.asks_for("network-above-pbt")) return;
  Table table{.title = "A network's hyperparameters: the better of two runs, by validation loss",
              .columns = {{"seed", true}, {"method"}, {"validation loss", true}, {"test accuracy", true}, {"oracle calls", true}},
              .rows = {}};
  for (size_t i = 0; i < seeds.size(); ++i) {
    run.progress("network", 0.4 + 0.6 * static_cast<double>(i) / static_cast<double>(seeds.size()));
    int64_t calls = 0;
    const auto best = [&](const Method& method) {
      Tuned found;
      for (size_t j = 0; j < lrs.size(); ++j) {
        const Tuned tuned = tune(search, method, lrs[j], seeds[i], method.hypergradient ? 0 : static_cast<int64_t>(j), calls);
        if (!(tuned.validation_loss >= found.validation_loss)) found = tuned;
      }
      table.rows.push_back({{Cell(std::to_string(seeds[i])), Cell(method.name), Cell(found.validation_loss),
                             Cell(format_fixed(found.test_accuracy, 1)), Cell(format_count(found.calls))}});
      return found;
    };
    const Tuned hpm = best(kHpm);
    calls = hpm.calls;
    const auto measure = [&](const char* claim, const Method& method) {
      run.measure(claim, best(method).validation_loss / hpm.validation_loss);
    };
    measure("network-teacher", kWithoutTeacher);
    measure("network-above-hypergradients", kIndependent);
    measure("network-above-pbt", kPbt);
    measure("network-above-random-search", kRandomSearch);
  }
  run.show(std::move(table));
}

}  // namespace

void study_hpm(StudyRun& run) {
  optimise_functions(run);
  tune_network(run);
}

}  // namespace bilevel
