#include "studies/study.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "bilevel/core/clock.h"
#include "bilevel/core/config.h"
#include "bilevel/core/stream.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/oracle/choice.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/outer/adam.h"
#include "bilevel/problem/likelihood.h"
#include "bilevel/problem/model.h"
#include "studies/images.h"
#include "tasks/supervised.h"

namespace bilevel {
namespace {

// --- What the three problems have in common: a few steps of inner SGD, a hypergradient, a step of Adam on x ---

std::shared_ptr<const Estimator> estimator_of(const std::string& keys) {
  Section section = Config::parse(keys, "studies/nhgd").root();
  std::string name;
  section.read("estimator", name);
  std::shared_ptr<const Estimator> made = make_estimator(name, section);
  section.finish();
  return made;
}

struct Method {
  std::string name;
  std::shared_ptr<const Estimator> estimator;
};

Method method(const std::string& name, const std::string& keys) { return {name, estimator_of(keys)}; }
Method cg() { return method("CG-10", "estimator = \"implicit\"\nsolver = \"cg\"\niterations = 10\ntolerance = 0.0"); }
Method exact() { return method("exact", "estimator = \"implicit\"\nsolver = \"dense\""); }
Method identity() { return method("identity", "estimator = \"identity\""); }
Method window() { return method("NHGD, window", "estimator = \"fisher\""); }

struct Descent {
  int64_t outer_steps = 0, inner_steps = 10, batch = 0, hvp_batch = 0;  // 0: all samples
  double inner_lr = 0.5, outer_lr = 0.1;
  int64_t look_every = 0;  // outer steps between two comparisons with the exact hypergradient; 0: none
  std::shared_ptr<const Estimator> reference = exact().estimator;  // what is exact
  uint64_t seed = 0;
};

/// The loop, one outer step at a time.
class Loop {
 public:
  Loop(const Problem& problem, const Estimator& estimator, const Descent& how)
      : how_(how),
        estimator_(estimator),
        plain_(make_oracle(problem)),
        oracle_(*plain_),
        solver_(std::make_unique<SgdRule>(SgdRuleOptions{}), {.lr = how.inner_lr, .steps = how.inner_steps},
                plan(problem.inner_samples(), how.batch, "nhgd inner batches")),
        hvp_plan_(plan(problem.inner_samples(), how.hvp_batch, "nhgd hvp batches")),
        adam_({.lr = how.outer_lr}),
        x_(problem.initial_outer()),
        start_{.y = problem.initial_inner(x_, 0)} {}

  /// Solves and estimates; `step` also moves x.
  Hypergradient estimate() {
    TrajectoryPolicy policy = estimator_.trajectory();
    policy.look_at_end = false;
    InnerSolution solution;
    EstimatorInput in = input(solution);
    policy.follower = estimator_.follower(in);
    solution = solver_.solve(oracle_, x_, 0, start_, policy);
    y_ = solution.y;
    return estimator_.estimate(in);
  }
  void step() {
    const Hypergradient h = estimate();
    carried_ = h.carried;
    q_ = h.q;
    if (how_.look_every > 0 && step_ % how_.look_every == 0) look(h);
    x_ = adam_.step(state_, x_, h.value);
    start_ = {y_, {}, 0, start_.first_step + how_.inner_steps};
    ++step_;
  }

  const at::Tensor& x() const { return x_; }
  const at::Tensor& y() const { return y_; }
  const Cost& cost() const { return oracle_.cost(); }
  double mean_cosine() const { return cosines_ / static_cast<double>(looks_); }
  double outer_loss() const { return plain_->outer_value(x_, y_, {}).item<double>(); }

 private:
  BatchPlan plan(int64_t samples, int64_t size, const char* purpose) const {
    return size == 0 ? BatchPlan::full() : BatchPlan::shuffled(samples, size, Stream(how_.seed, purpose));
  }
  EstimatorInput input(InnerSolution& solution) const {
    Batch inner, outer;
    inner.seed = Stream(how_.seed, "nhgd products").at(step_).seed();
    EstimatorInput in{oracle_, solver_, x_, solution, inner, outer, q_};
    in.cold_start = false;
    in.start = start_;
    in.carried = carried_;
    if (!hvp_plan_.is_full() && estimator_.batch_roles().hvps) {
      in.hvp_batch = inner;
      in.hvp_batch->samples = hvp_plan_.samples(step_);
    }
    return in;
  }
  // Against the reference at this y on all samples; not counted.
  void look(const Hypergradient& h) {
    InnerSolution solution;
    solution.y = y_;
    EstimatorInput in{*plain_, solver_, x_, solution, {}, {}, {}};
    const at::Tensor truth = how_.reference->estimate(in).value;
    cosines_ += (h.value.dot(truth) / (h.value.norm() * truth.norm())).item<double>();
    ++looks_;
  }

  Descent how_;
  const Estimator& estimator_;
  std::unique_ptr<Oracle> plain_;
  CountedOracle oracle_;
  RuleSolver solver_;
  BatchPlan hvp_plan_;
  OuterAdam adam_;
  State state_;
  at::Tensor x_, y_, q_;
  Tensors carried_;
  InnerStart start_;
  int64_t step_ = 0, looks_ = 0;
  double cosines_ = 0;
};

/// The rate at which `method` ends at the least outer loss on the seed of `how`.
double best_rate(const Problem& problem, const Method& method, Descent how, const std::vector<double>& rates) {
  if (rates.size() == 1) return rates.front();
  how.look_every = 0;
  double best = rates.front(), least = std::numeric_limits<double>::infinity();
  for (const double rate : rates) {
    how.outer_lr = rate;
    Loop loop(problem, *method.estimator, how);
    for (int64_t k = 0; k < how.outer_steps; ++k) loop.step();
    if (loop.outer_loss() < least) {
      least = loop.outer_loss();
      best = rate;
    }
  }
  return best;
}

constexpr int64_t kTuningSeed = 1000;

struct Images {
  at::Tensor pixels, labels;  // [n, 784], int64 [n]
  Images rows(int64_t first, int64_t count) const { return {pixels.narrow(0, first, count), labels.narrow(0, first, count)}; }
};

Images fashion(const std::string& split, int64_t count, int64_t seed) {
  const auto [pixels, labels] = draw_fashion("nhgd", split, count, seed);
  return {pixels.flatten(1), labels};
}

double mean_of(const std::vector<double>& all) { return at::tensor(all, at::kDouble).mean().item<double>(); }

// --- Hyper-cleaning ---

struct Cleaning {
  std::unique_ptr<SupervisedProblem> problem;
  at::Tensor clean;  // [n], which labels are right
  Images test;

  double accuracy(const at::Tensor& y) const {
    const at::NoGradGuard no_grad;
    return 100 * problem->model().outputs(y, test.pixels).argmax(0).eq(test.labels).to(at::kDouble).mean().item<double>();
  }
  /// F1 of "the weight is above one half: the label is right".
  double f1(const at::Tensor& x) const {
    const at::Tensor kept = x.gt(0);
    const double both = kept.logical_and(clean).sum().item<double>();
    return 2 * both / (kept.sum().item<double>() + clean.sum().item<double>());
  }
};

Cleaning cleaning_of(int64_t seed, const ModelOptions& model = {}, int64_t count = 50) {
  constexpr int64_t kInner = 2000, kOuter = 1000;
  const Images all = fashion("train", kInner + kOuter, seed), inner = all.rows(0, kInner), outer = all.rows(kInner, kOuter);
  // Principal components, scaled together so that samples have a mean squared norm of `count`.
  const at::Tensor mean = inner.pixels.mean(0), centred = (inner.pixels - mean).to(at::kDouble);
  const auto eigen = at::linalg_eigh(centred.t().mm(centred) / kInner);
  const at::Tensor axes = std::get<1>(eigen).narrow(1, 784 - count, count);
  const double scale =
      std::sqrt(static_cast<double>(count) / std::get<0>(eigen).narrow(0, 784 - count, count).sum().item<double>());
  const auto components = [&](const at::Tensor& pixels) {
    return ((pixels - mean).to(at::kDouble).mm(axes) * scale).to(at::kFloat);
  };

  const Stream noise(static_cast<uint64_t>(seed), "nhgd label noise");
  const at::Tensor drawn = at::where(noise.at(0).uniform({kInner}) < 0.5, noise.at(1).integers(10, {kInner}), inner.labels);
  SupervisedData data;
  data.inner = {components(inner.pixels), drawn};
  data.outer = {components(outer.pixels), outer.labels};
  SupervisedOptions options;
  options.model = model;
  options.seed = seed;
  options.hyperparameters = {{.kind = Hyperparameter::Kind::kSampleWeight}};
  options.l2 = 0.02;
  options.l2_bias = true;
  options.outputs = 10;
  const Images test = fashion("test", 2000, seed);
  return {std::make_unique<SupervisedProblem>(options, data), drawn.eq(inner.labels), {components(test.pixels), test.labels}};
}

Descent cleaning_descent(int64_t steps, int64_t seed) {
  return {.outer_steps = steps,
          .inner_steps = 10,
          .batch = 256,
          .hvp_batch = 256,
          .inner_lr = 0.1,
          .look_every = 10,
          .seed = static_cast<uint64_t>(seed)};
}

std::vector<Method> cleaning_methods(bool full) {
  std::vector<Method> methods = {window(), cg(), identity()};
  if (full) {
    const std::string smoothed = "estimator = \"fisher\"\nform = \"dense\"";
    methods.push_back(method("NHGD, smoothed", smoothed));
    methods.push_back(method("NHGD, smoothed, labels of the data", smoothed + "\nlabels = \"observed\""));
    methods.push_back(method("NHGD, window, labels of the data", "estimator = \"fisher\"\nlabels = \"observed\""));
    methods.push_back(method("Neumann-20", "estimator = \"implicit\"\nsolver = \"neumann\"\niterations = 20"));
    methods.push_back(exact());
  }
  return methods;
}

double median(std::vector<double> all) {
  const auto middle = all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2);
  std::ranges::nth_element(all, middle);
  return *middle;
}

/// Median seconds of an outer step, the methods in turn, from the same point each time; and the median shares of a second
/// thread's work that were hidden, NaN where there was none.
struct Times {
  std::vector<double> seconds, hidden;
};
Times times_of(const Cleaning& cleaning, const std::vector<Method>& methods, Descent how, int64_t repeats) {
  std::vector<std::unique_ptr<Loop>> loops;
  how.look_every = 0;
  for (const Method& one : methods) {
    loops.push_back(std::make_unique<Loop>(*cleaning.problem, *one.estimator, how));
    for (int64_t k = 0; k < 5; ++k) loops.back()->step();
  }
  std::vector<std::vector<double>> seconds(methods.size()), hidden(methods.size());
  for (int64_t k = 0; k < repeats; ++k) {
    for (size_t i = 0; i < methods.size(); ++i) {
      const Clock::time_point began = Clock::now();
      const Cost cost = loops[i]->estimate().cost;
      seconds[i].push_back(seconds_since(began));
      hidden[i].push_back(cost.hidden_seconds / cost.second_thread_seconds);
    }
  }
  Times times;
  for (size_t i = 0; i < methods.size(); ++i) {
    times.seconds.push_back(median(std::move(seconds[i])));
    times.hidden.push_back(median(std::move(hidden[i])));
  }
  return times;
}

void clean(StudyRun& run) {
  const int64_t steps = run.setting<int64_t>("cleaning_steps"), repeats = run.setting<int64_t>("repeats");
  const auto rates = run.setting<std::vector<double>>("cleaning_rates");
  const std::vector<int64_t> seeds = run.seeds();
  const std::vector<Method> methods = cleaning_methods(run.scale() == Scale::kFull);
  std::vector<double> tuned;
  const Cleaning for_tuning = cleaning_of(kTuningSeed);
  for (size_t i = 0; i < methods.size(); ++i) {
    run.progress("cleaning, rates", 0.2 * static_cast<double>(i) / static_cast<double>(methods.size()));
    tuned.push_back(best_rate(*for_tuning.problem, methods[i], cleaning_descent(steps, kTuningSeed), rates));
  }

  struct Column {
    std::vector<double> loss, accuracy, f1, cosine, products;
  };
  std::vector<Column> columns(methods.size());
  LineChart chart{.title = "Hyper-cleaning: outer loss of the first seed", .x_label = "outer step", .y_label = "f", .series = {}};
  for (size_t s = 0; s < seeds.size(); ++s) {
    const Cleaning cleaning = cleaning_of(seeds[s]);
    for (size_t i = 0; i < methods.size(); ++i) {
      run.progress("cleaning", 0.2 + 0.4 *
                                         (static_cast<double>(s) + static_cast<double>(i) / static_cast<double>(methods.size())) /
                                         static_cast<double>(seeds.size()));
      Descent how = cleaning_descent(steps, seeds[s]);
      how.outer_lr = tuned[i];
      Loop loop(*cleaning.problem, *methods[i].estimator, how);
      LineChart::Series series{methods[i].name, {}, {}};
      for (int64_t k = 0; k < steps; ++k) {
        loop.step();
        if (s == 0 && k % 5 == 0) {
          series.x.push_back(static_cast<double>(k));
          series.y.push_back(loop.outer_loss());
        }
      }
      if (s == 0) chart.series.push_back(std::move(series));
      Column& at = columns[i];
      at.loss.push_back(loop.outer_loss());
      at.accuracy.push_back(cleaning.accuracy(loop.y()));
      at.f1.push_back(cleaning.f1(loop.x()));
      at.cosine.push_back(loop.mean_cosine());
      at.products.push_back(static_cast<double>(loop.cost().hvps - loop.cost().cross_products) / static_cast<double>(steps));
    }
  }
  constexpr size_t kWindow = 0, kCg = 1, kIdentity = 2, kDense = 3, kOwn = 4;
  for (size_t s = 0; s < seeds.size(); ++s) {
    run.measure("accuracy", columns[kWindow].accuracy[s] - columns[kCg].accuracy[s]);
    run.measure("no-products", columns[kWindow].products[s]);
    run.measure("direction", columns[kWindow].cosine[s]);
    if (run.scale() != Scale::kFull) continue;
    run.measure("as-good-as-cg", columns[kWindow].loss[s] / columns[kCg].loss[s]);
    run.measure("better-than-identity", columns[kWindow].loss[s] / columns[kIdentity].loss[s]);
    run.measure("direction-dense", columns[kDense].cosine[s]);
    run.measure("own-labels", columns[kDense].cosine[s] - columns[kOwn].cosine[s]);
  }

  const std::vector<double> seconds = times_of(for_tuning, methods, cleaning_descent(0, 0), repeats).seconds;
  run.measure("cheap", seconds[kWindow] / seconds[kIdentity]);
  run.measure("cheaper-than-cg", seconds[kWindow] / seconds[kCg]);

  Table table{.title = "Hyper-cleaning: means over the seeds",
              .columns = {{"method", false},
                          {"rate", true},
                          {"outer loss", true},
                          {"test accuracy, %", true},
                          {"F1", true},
                          {"cosine", true},
                          {"products with H a step", true},
                          {"ms a step", true}},
              .rows = {}};
  for (size_t i = 0; i < methods.size(); ++i) {
    const Column& at = columns[i];
    table.rows.push_back({{Cell(methods[i].name), Cell(format_number(tuned[i], 2)), Cell(format_fixed(mean_of(at.loss), 4)),
                           Cell(format_fixed(mean_of(at.accuracy), 1)), Cell(format_fixed(mean_of(at.f1), 3)),
                           Cell(format_fixed(mean_of(at.cosine), 3)), Cell(format_fixed(mean_of(at.products), 1)),
                           Cell(format_fixed(1e3 * seconds[i], 1))}});
  }
  run.show(std::move(table));
  run.picture(std::move(chart));
}

// --- Hyper-cleaning with a network, where a form for each layer is what is to be had, and what a second thread hides ---

const std::string kPositive = "estimator = \"implicit\"\ncurvature = \"gauss-newton\"\n";  // the Hessian of a network is not
const std::string kSmoothed = "estimator = \"fisher\"\nform = \"dense\"",
                  kFactors = "estimator = \"fisher\"\nform = \"kronecker\"";
const std::string kOverlap = "\noverlap = true";

Cleaning network_of(int64_t seed) { return cleaning_of(seed, {.kind = "mlp", .hidden = {16}}, 20); }

Descent network_descent(int64_t steps, int64_t seed) {
  Descent how = cleaning_descent(steps, seed);
  how.inner_lr = 0.5;
  how.reference = estimator_of(kPositive + "solver = \"dense\"\ndamping = 1e-3");
  return how;
}

void clean_with_a_network(StudyRun& run) {
  const int64_t steps = run.setting<int64_t>("network_steps"), repeats = run.setting<int64_t>("repeats");
  const auto rates = run.setting<std::vector<double>>("cleaning_rates");
  const bool full = run.scale() == Scale::kFull;
  std::vector<Method> methods = {method("NHGD, K-FAC", kFactors), method("NHGD, smoothed", kSmoothed)};
  if (full) {
    methods.push_back(method("CG-10", kPositive + "solver = \"cg\"\niterations = 10\ntolerance = 0.0\ndamping = 1e-3"));
    methods.push_back(identity());
    methods.push_back(window());
  }
  constexpr size_t kKfac = 0, kDense = 1, kCg = 2, kIdentity = 3;
  const Cleaning for_tuning = network_of(kTuningSeed);
  struct Column {
    double rate = 0;
    std::vector<double> loss, accuracy, cosine;
  };
  std::vector<Column> columns(methods.size());
  for (size_t i = 0; full && i < methods.size(); ++i) {
    run.progress("network, rates", 0.5 + 0.02 * static_cast<double>(i));
    columns[i].rate = best_rate(*for_tuning.problem, methods[i], network_descent(steps, kTuningSeed), rates);
  }
  for (const int64_t seed : full ? run.seeds() : std::vector<int64_t>{}) {
    const Cleaning cleaning = network_of(seed);
    for (size_t i = 0; i < methods.size(); ++i) {
      run.progress("network", 0.6 + 0.02 * static_cast<double>(seed));
      Descent how = network_descent(steps, seed);
      how.outer_lr = columns[i].rate;
      Loop loop(*cleaning.problem, *methods[i].estimator, how);
      for (int64_t k = 0; k < steps; ++k) loop.step();
      columns[i].loss.push_back(loop.outer_loss());
      columns[i].accuracy.push_back(cleaning.accuracy(loop.y()));
      columns[i].cosine.push_back(loop.mean_cosine());
    }
    run.measure("network-as-good-as-cg", columns[kKfac].loss.back() / columns[kCg].loss.back());
    run.measure("network-better-than-identity", columns[kKfac].loss.back() / columns[kIdentity].loss.back());
    run.measure("network-direction", columns[kKfac].cosine.back() - columns[kIdentity].cosine.back());
  }

  // The same steps on one thread and on two.
  double differences = 0;
  for (const std::string& form : {kFactors, kSmoothed}) {
    std::vector<at::Tensor> ends;
    for (const std::string& keys : {form, form + kOverlap}) {
      const std::shared_ptr<const Estimator> estimator = estimator_of(keys);
      Descent how = network_descent(8, 0);
      how.look_every = 0;
      Loop loop(*for_tuning.problem, *estimator, how);
      for (int64_t k = 0; k < how.outer_steps; ++k) loop.step();
      ends.push_back(loop.x());
    }
    differences += ends[0].ne(ends[1]).sum().item<double>();
  }
  run.measure("overlap-same-bits", differences);

  std::vector<Method> timed = methods;
  timed.push_back(method("NHGD, K-FAC, second thread", kFactors + kOverlap));
  timed.push_back(method("NHGD, smoothed, second thread", kSmoothed + kOverlap));
  const size_t kOverlapped = timed.size() - 1;
  const Times times = times_of(for_tuning, timed, network_descent(0, 0), repeats);
  if (full) run.measure("network-cheaper-than-dense", times.seconds[kKfac] / times.seconds[kDense]);
  if (full) run.measure("overlap-hidden", times.hidden[kOverlapped]);
  if (full) run.measure("overlap-time", times.seconds[kOverlapped] / times.seconds[kDense]);

  Table table{.title = "Hyper-cleaning with a network 20-16-10: means over the seeds",
              .columns = {{"method", false},
                          {"rate", true},
                          {"outer loss", true},
                          {"test accuracy, %", true},
                          {"cosine", true},
                          {"ms a step", true},
                          {"hidden, %", true}},
              .rows = {}};
  for (size_t i = 0; i < timed.size(); ++i) {
    Table::Row row{{Cell(timed[i].name)}};
    const bool trained = i < columns.size() && !columns[i].loss.empty();
    row.cells.push_back(trained ? Cell(format_number(columns[i].rate, 2)) : Cell(""));
    row.cells.push_back(trained ? Cell(format_fixed(mean_of(columns[i].loss), 4)) : Cell(""));
    row.cells.push_back(trained ? Cell(format_fixed(mean_of(columns[i].accuracy), 1)) : Cell(""));
    row.cells.push_back(trained ? Cell(format_fixed(mean_of(columns[i].cosine), 3)) : Cell(""));
    row.cells.push_back(Cell(format_fixed(1e3 * times.seconds[i], 1)));
    row.cells.push_back(std::isfinite(times.hidden[i]) ? Cell(format_fixed(100 * times.hidden[i], 0)) : Cell(""));
    table.rows.push_back(std::move(row));
  }
  run.show(std::move(table));
}

// --- Distillation: x are images, and y is softmax regression on them ---

class Distillation final : public Problem {
 public:
  static constexpr int64_t kEach = 5, kClasses = 10;
  static constexpr double kRidge = 1e-3;

  /// From the first kEach images of each class.
  explicit Distillation(Images real) : model_(make_model({}, {784}, kClasses)), real_(std::move(real)) {
    outer_layout_.add("images", {kEach * kClasses, 784});
    std::vector<at::Tensor> first;
    for (int64_t c = 0; c < kClasses; ++c) {
      first.push_back(real_.pixels.index_select(0, real_.labels.eq(c).nonzero().squeeze(1).narrow(0, 0, kEach)));
    }
    x0_ = at::cat(first).flatten();
    targets_ = at::arange(kClasses, at::kLong).repeat_interleave(kEach).unsqueeze(0);
  }

  const Layout& outer_layout() const override { return outer_layout_; }
  const Layout& inner_layout() const override { return model_->layout(); }
  at::Tensor initial_outer() const override { return x0_; }
  int64_t inner_samples() const override { return kEach * kClasses; }
  int64_t outer_samples() const override { return real_.labels.size(0); }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return loss_.losses(likelihood_outputs(x, y, batch), targets(batch)).mean() + 0.5 * kRidge * y.dot(y);
  }
  at::Tensor outer_loss(const at::Tensor& /*x*/, const at::Tensor& y, const Batch& /*batch*/) const override {
    return loss_.losses(model_->outputs(y, real_.pixels), real_.labels.unsqueeze(0)).mean();
  }
  bool has_inner_likelihood() const override { return true; }
  at::Tensor likelihood_outputs(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    const at::Tensor images = x.view({kEach * kClasses, 784});
    return model_->outputs(y, batch.full() ? images : images.index_select(0, batch.samples));
  }
  Likelihood inner_likelihood(const at::Tensor& x, const Batch& batch) const override {
    const at::Tensor t = targets(batch);
    const int64_t n = t.size(1);
    return {Loss::Kind::kSoftmax, kClasses, t, at::full({n}, 1.0 / static_cast<double>(n), x.options()),
            at::full({inner_layout().size()}, kRidge, x.options())};
  }

 private:
  at::Tensor targets(const Batch& batch) const { return batch.full() ? targets_ : targets_.index_select(1, batch.samples); }
  std::unique_ptr<Model> model_;
  Images real_;
  Layout outer_layout_;
  at::Tensor x0_, targets_;
  Loss loss_{"softmax"};
};

Distillation distillation_of(int64_t seed) {
  Images real = fashion("train", 5000, seed);
  const at::Tensor centred = real.pixels - real.pixels.mean(0);
  real.pixels = centred / centred.square().sum(1).mean().sqrt();
  return Distillation(real);
}

void distil(StudyRun& run) {
  const auto rates = run.setting<std::vector<double>>("distillation_rates");
  const int64_t steps = run.setting<int64_t>("distillation_steps");
  if (!run.asks_for("distillation")) return;
  const std::vector<Method> methods = {window(), cg(), identity()};
  const auto descent = [&](int64_t seed) -> Descent {
    return {.outer_steps = steps, .inner_lr = 1.0, .seed = static_cast<uint64_t>(seed)};
  };
  std::vector<double> tuned;
  const Distillation for_tuning = distillation_of(kTuningSeed);
  for (const Method& one : methods) {
    run.progress("distillation, rates", 0.6);
    tuned.push_back(best_rate(for_tuning, one, descent(kTuningSeed), rates));
  }
  Table table{.title = "Distillation: outer loss",
              .columns = {{"seed", true}, {methods[0].name, true}, {methods[1].name, true}, {methods[2].name, true}},
              .rows = {}};
  for (const int64_t seed : run.seeds()) {
    const Distillation problem = distillation_of(seed);
    std::vector<double> losses;
    Table::Row row{{Cell(std::to_string(seed))}};
    for (size_t i = 0; i < methods.size(); ++i) {
      run.progress("distillation", 0.7 + 0.05 * static_cast<double>(seed));
      Descent how = descent(seed);
      how.outer_lr = tuned[i];
      Loop loop(problem, *methods[i].estimator, how);
      for (int64_t k = 0; k < steps; ++k) loop.step();
      losses.push_back(loop.outer_loss());
      row.cells.push_back(Cell(format_fixed(losses.back(), 4)));
    }
    run.measure("distillation", losses[0]);
    run.measure("distillation-as-good-as-cg", losses[0] / losses[1]);
    table.rows.push_back(std::move(row));
  }
  run.show(std::move(table));
}

// --- Poisson: −u'' = s on [0, 1], u = 0 at both ends ---

/// u = Σ y_k sin(kπ r)/(kπ²), s = Σ x_j hat_j(r). The inner loss is that −u'' at 64 points is normal around s, with a variance of
/// one, the outer one half the mean squared error of u at 24 other points.
class Poisson final : public Problem {
 public:
  static constexpr int64_t kPoints = 64, kModes = 16, kHats = 8, kObserved = 24;
  static constexpr double kRidge = 1e-4, kNoise = 1e-4, kPi = 3.141592653589793;

  explicit Poisson(int64_t seed) {
    const Stream stream(static_cast<uint64_t>(seed), "nhgd poisson");
    truth_ = stream.at(0).normal({kHats});
    const at::Tensor r = (at::arange(kPoints, at::kDouble) + 0.5) / kPoints, k = at::arange(1, kModes + 1, at::kDouble);
    residual_ = k * (kPi * r.unsqueeze(1) * k).sin();
    hats_ = hats(r);
    const at::Tensor where = stream.at(1).uniform({kObserved});
    observe_ = (kPi * where.unsqueeze(1) * k).sin() / (k * kPi * kPi);
    // The exact u of the true source, by its sine series.
    const at::Tensor fine = (at::arange(4000, at::kDouble) + 0.5) / 4000, s = hats(fine).mv(truth_);
    const at::Tensor n = at::arange(1, 201, at::kDouble);
    const at::Tensor coefficients = 2 * (kPi * n.unsqueeze(1) * fine).sin().mv(s) / 4000 / (kPi * n).square();
    data_ = (kPi * where.unsqueeze(1) * n).sin().mv(coefficients) + kNoise * stream.at(2).normal({kObserved});
    outer_layout_.add("source", {kHats});
    inner_layout_.add("coefficients", {kModes});
  }

  double error(const at::Tensor& x) const { return ((x - truth_).norm() / truth_.norm()).item<double>(); }

  const Layout& outer_layout() const override { return outer_layout_; }
  const Layout& inner_layout() const override { return inner_layout_; }
  at::Tensor initial_outer() const override { return at::zeros({kHats}, at::kDouble); }
  int64_t inner_samples() const override { return kPoints; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return 0.5 * (rows(residual_, batch).mv(y) - rows(hats_, batch).mv(x)).square().mean() + 0.5 * kRidge * y.dot(y);
  }
  at::Tensor outer_loss(const at::Tensor& /*x*/, const at::Tensor& y, const Batch& /*batch*/) const override {
    return 0.5 * (observe_.mv(y) - data_).square().mean();
  }
  bool has_inner_likelihood() const override { return true; }
  at::Tensor likelihood_outputs(const at::Tensor& /*x*/, const at::Tensor& y, const Batch& batch) const override {
    return rows(residual_, batch).mv(y);
  }
  Likelihood inner_likelihood(const at::Tensor& x, const Batch& batch) const override {
    const at::Tensor t = rows(hats_, batch).mv(x);
    return {Loss::Kind::kSquared, 1, t.unsqueeze(0), at::ones_like(t) / static_cast<double>(t.size(0)),
            at::full({kModes}, kRidge, x.options())};
  }

 private:
  static at::Tensor rows(const at::Tensor& all, const Batch& batch) {
    return batch.full() ? all : all.index_select(0, batch.samples);
  }
  static at::Tensor hats(const at::Tensor& r) {
    const at::Tensor centres = (at::arange(kHats, at::kDouble) + 0.5) / kHats;
    return (1 - (r.unsqueeze(1) - centres).abs() * kHats).clamp_min(0);
  }
  Layout outer_layout_, inner_layout_;
  at::Tensor truth_, residual_, hats_, observe_, data_;
};

void solve_poisson(StudyRun& run) {
  const int64_t steps = run.setting<int64_t>("poisson_steps");
  const auto rates = run.setting<std::vector<double>>("poisson_rates");
  if (!run.asks_for("poisson")) return;
  const std::vector<Method> methods = {
      window(), exact(), method("NHGD, labels of the data", "estimator = \"fisher\"\nlabels = \"observed\""), identity()};
  const auto descent = [&](int64_t seed) -> Descent {
    return {.outer_steps = steps, .inner_steps = 20, .batch = 16, .inner_lr = 0.01, .seed = static_cast<uint64_t>(seed)};
  };
  run.progress("Poisson, rates", 0.9);
  std::vector<double> tuned;
  Table table{.title = "Poisson: relative error of the source", .columns = {{"seed", true}}, .rows = {}};
  for (const Method& one : methods) {
    tuned.push_back(best_rate(Poisson(kTuningSeed), one, descent(kTuningSeed), rates));
    table.columns.push_back({fmt::format("{}, rate {}", one.name, tuned.back()), true});
  }
  run.progress("Poisson", 0.95);
  for (const int64_t seed : run.seeds()) {
    const Poisson problem(seed);
    std::vector<double> errors;
    Table::Row row{{Cell(std::to_string(seed))}};
    for (size_t i = 0; i < methods.size(); ++i) {
      Descent how = descent(seed);
      how.outer_lr = tuned[i];
      Loop loop(problem, *methods[i].estimator, how);
      for (int64_t k = 0; k < steps; ++k) loop.step();
      errors.push_back(problem.error(loop.x()));
      row.cells.push_back(Cell(format_fixed(errors.back(), 3)));
    }
    run.measure("poisson", errors[0] / errors[1]);
    table.rows.push_back(std::move(row));
  }
  run.show(std::move(table));
}

}  // namespace

void study_nhgd(StudyRun& run) {
  clean(run);
  clean_with_a_network(run);
  distil(run);
  solve_poisson(run);
}

}  // namespace bilevel
