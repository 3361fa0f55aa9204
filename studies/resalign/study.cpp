#include "studies/study.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <functional>

#include "bilevel/algorithm/double_loop.h"
#include "bilevel/core/memory_meter.h"
#include "bilevel/hypergrad/moreau.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sampled.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/linear/richardson.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/outer/adam.h"
#include "studies/images.h"

namespace bilevel {
namespace {

constexpr int64_t kLatent = 32, kTimes = 100, kFeatures = 16, kHidden = 128, kClasses = 10, kHarmful = 1;
constexpr double kBeta = 0.8, kRetain = 2.0, kMostHarm = 2.0;  // β and α; gradient ascent is bounded by the last

// --- The denoiser ---

struct Latents {
  at::Tensor z, labels;  // [n, 32] float, int64 [n]
  int64_t size() const { return labels.size(0); }
  Latents rows(const at::Tensor& which) const { return {z.index_select(0, which), labels.index_select(0, which)}; }
  /// `count` of the samples of these classes, in the order of the data; fewer where there are not so many.
  Latents of(const std::vector<int64_t>& classes, int64_t count) const {
    const at::Tensor found = at::isin(labels, at::tensor(classes, at::kLong)).nonzero().squeeze(1);
    return rows(found.narrow(0, 0, std::min(count, found.size(0))));
  }
};

/// The leading principal components of images, each of unit variance.
std::pair<Latents, Latents> latents(int64_t train, int64_t test, int64_t seed) {
  const auto load = [seed](const std::string& split, int64_t count) {
    const auto [pixels, labels] = draw_fashion("resalign", split, count, seed);
    return std::make_pair(pixels.flatten(1).to(at::kDouble), labels);
  };
  const auto [X, labels] = load("train", train);
  const auto [test_X, test_labels] = load("test", test);
  const at::Tensor mean = X.mean(0), centred = X - mean;
  const auto [values, vectors] = at::linalg_eigh(centred.t().mm(centred) / static_cast<double>(train));
  const int64_t skip = values.size(0) - kLatent;
  const at::Tensor project = vectors.narrow(1, skip, kLatent) / values.narrow(0, skip, kLatent).sqrt();
  return {{centred.mm(project).to(at::kFloat), labels}, {(test_X - mean).mm(project).to(at::kFloat), test_labels}};
}

/// Predicts the noise in z_t from z_t, t and the class: a perceptron with one residual layer.
class Denoiser {
 public:
  Denoiser() {
    const int64_t in = kLatent + kFeatures + kClasses;
    layout_.add("w1", {kHidden, in}).add("b1", {kHidden, 1}).add("w2", {kHidden, kHidden}).add("b2", {kHidden, 1});
    layout_.add("w3", {kLatent, kHidden}).add("b3", {kLatent, 1});
    kept_ = (1 - at::linspace(1e-3, 0.06, kTimes, at::kFloat)).cumprod(0);
    const at::Tensor frequency = at::exp(at::arange(kFeatures / 2, at::kFloat) * (-std::log(1000.0) / (kFeatures / 2)));
    const at::Tensor angle = frequency.unsqueeze(1) * at::arange(kTimes, at::kFloat);
    time_ = at::cat({angle.sin(), angle.cos()});
  }
  const Layout& layout() const { return layout_; }

  at::Tensor initial(int64_t seed) const {
    const Stream stream(static_cast<uint64_t>(seed), "resalign weights");
    std::vector<at::Tensor> parts;
    for (size_t i = 0; i < layout_.parts().size(); ++i) {
      const Part& part = layout_.parts()[i];
      const double bound = 1 / std::sqrt(static_cast<double>(layout_.parts()[i - i % 2].shape[1]));
      parts.push_back(bound * (2 * stream.at(static_cast<int64_t>(i)).uniform({part.size}) - 1));
    }
    return at::cat(parts).to(at::kFloat);
  }

  /// z_t of each sample, noise and network input, drawn by `draw`.
  struct Noised {
    at::Tensor noise, input;  // [32, n], [32 + 16 + 10, n]
  };
  Noised noised(const Latents& samples, Draw draw) const {
    const int64_t n = samples.size();
    const at::Tensor t = draw.integers(kTimes, {n}), noise = draw.normal({kLatent, n}, at::kFloat), a = kept_.index_select(0, t);
    const at::Tensor z = a.sqrt() * samples.z.t() + (1 - a).sqrt() * noise;
    return {noise, at::cat({z, time_.index_select(1, t), at::one_hot(samples.labels, kClasses).t().to(at::kFloat)})};
  }
  at::Tensor operator()(const at::Tensor& y, const at::Tensor& input) const {
    const std::vector<at::Tensor> w = layout_.split(y);
    const at::Tensor first = at::silu(w[0].mm(input) + w[1]);
    return w[4].mm(first + at::silu(w[2].mm(first) + w[3])) + w[5];
  }
  /// The denoising error: 1 for a network that predicts nothing.
  at::Tensor loss(const at::Tensor& y, const Latents& samples, Draw draw) const {
    const Noised given = noised(samples, draw);
    return at::mse_loss((*this)(y, given.input), given.noise);
  }
  double error(const at::Tensor& y, const Latents& samples) const {
    const at::NoGradGuard no_grad;
    double sum = 0;
    for (int64_t k = 0; k < 8; ++k) sum += loss(y, samples, Stream(0, "resalign error").at(k)).item<double>() / 8;
    return sum;
  }

 private:
  Layout layout_;
  at::Tensor kept_, time_;  // ā_t [100], [16, 100]
};

// --- Training ---

/// Denoising of a set of samples, from given weights: pretraining, and the attacks.
class Training final : public Problem {
 public:
  Training(const Denoiser& denoiser, Latents samples, at::Tensor start)
      : denoiser_(denoiser), samples_(std::move(samples)), start_(std::move(start)) {}
  const Layout& outer_layout() const override { return none_; }
  const Layout& inner_layout() const override { return denoiser_.layout(); }
  at::Tensor initial_outer() const override { return at::empty({0}, at::kFloat); }
  at::Tensor initial_inner(const at::Tensor&, int64_t) const override { return start_; }
  int64_t inner_samples() const override { return samples_.size(); }
  at::Tensor inner_loss(const at::Tensor&, const at::Tensor& y, const Batch& batch) const override {
    return denoiser_.loss(y, batch.full() ? samples_ : samples_.rows(batch.samples), Stream(batch.seed, "resalign noise").at(0));
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return inner_loss(x, y, batch);
  }

 private:
  const Denoiser& denoiser_;
  const Latents samples_;
  const at::Tensor start_;
  Layout none_;
};

struct Recipe {
  bool adam = true;
  double lr = 1e-3;
  int64_t steps = 100;

  std::unique_ptr<InnerSolver> solver(int64_t samples, int64_t seed) const {
    std::unique_ptr<UpdateRule> rule;
    if (adam) {
      rule = std::make_unique<AdamRule>(AdamRuleOptions{});
    } else {
      rule = std::make_unique<SgdRule>(SgdRuleOptions{});
    }
    const auto drawn = static_cast<uint64_t>(seed);
    return std::make_unique<RuleSolver>(
        std::move(rule), RuleSolverOptions{.lr = lr, .steps = steps, .seed = drawn},
        BatchPlan::shuffled(samples, std::min<int64_t>(64, samples), Stream(drawn, "resalign batches")));
  }
};

at::Tensor train(const Denoiser& denoiser, const Latents& samples, const at::Tensor& start, const Recipe& recipe, int64_t seed) {
  const Training problem(denoiser, samples, start);
  return recipe.solver(samples.size(), seed)->solve(AutodiffOracle(problem), problem.initial_outer(), 0, {.y = start}, {}).y;
}

// --- Unlearning ---

/// x are the published weights, y those after a fine-tuning of x on one of three sets of harmless classes.
class Unlearning final : public Problem {
 public:
  Unlearning(const Denoiser& denoiser, const Latents& all, at::Tensor original, double beta)
      : denoiser_(denoiser), original_(std::move(original)), beta_(beta), harmful_(all.of({kHarmful}, all.size())) {
    for (const std::vector<int64_t>& classes : {std::vector<int64_t>{0, 4}, {2, 7}, {5, 8}})
      sets_.push_back(all.of(classes, kSet));
    kept_ = all.of({0, 2, 3, 4, 5, 6, 7, 8, 9}, all.size());
  }
  static constexpr int64_t kSet = 200;  // samples of a fine-tuning

  const Layout& outer_layout() const override { return denoiser_.layout(); }
  const Layout& inner_layout() const override { return denoiser_.layout(); }
  at::Tensor initial_outer() const override { return original_; }
  at::Tensor initial_inner(const at::Tensor& x, int64_t) const override { return x; }
  bool initial_inner_depends_on_outer() const override { return true; }
  int64_t inner_problems() const override { return static_cast<int64_t>(sets_.size()); }
  int64_t inner_samples() const override { return kSet; }
  at::Tensor inner_loss(const at::Tensor&, const at::Tensor& y, const Batch& batch) const override {
    const Latents& set = sets_[static_cast<size_t>(batch.slice)];
    return denoiser_.loss(y, batch.full() ? set : set.rows(batch.samples), Stream(batch.seed, "resalign noise").at(0));
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    const Stream stream(batch.seed, "resalign outer");
    const auto some = [&](const Latents& of, int64_t k) { return of.rows(stream.at(k).integers(of.size(), {64})); };
    const Latents harmful = some(harmful_, 0), kept = some(kept_, 1);
    const auto harm = [&](const at::Tensor& weights) {
      return denoiser_.loss(weights, harmful, stream.at(2)).clamp_max(kMostHarm).neg();
    };
    const Denoiser::Noised given = denoiser_.noised(kept, stream.at(3));
    const at::Tensor drift = at::mse_loss(denoiser_(x, given.input), denoiser_(original_, given.input));
    const at::Tensor at_x = (1 - beta_) * harm(x) + kRetain * drift;
    return beta_ == 0 ? at_x + 0 * y.sum() : at_x + beta_ * harm(y);
  }

 private:
  const Denoiser& denoiser_;
  const at::Tensor original_;
  const double beta_;
  Latents harmful_, kept_;
  std::vector<Latents> sets_;
};

const Recipe kOne{.adam = true, .lr = 1e-3, .steps = 20};

std::unique_ptr<InnerSolver> one_kind(int64_t seed) { return kOne.solver(Unlearning::kSet, seed); }

std::unique_ptr<InnerSolver> many_kinds(int64_t seed) {
  std::vector<std::unique_ptr<InnerSolver>> all;
  for (const int64_t steps : {5, 10, 20, 30}) {
    for (const double lr : {3e-4, 1e-3}) all.push_back(Recipe{true, lr, steps}.solver(Unlearning::kSet, seed));
    for (const double lr : {0.02, 0.1}) all.push_back(Recipe{false, lr, steps}.solver(Unlearning::kSet, seed));
  }
  return std::make_unique<SampledSolver>(std::move(all), static_cast<uint64_t>(seed));
}

struct Method {
  const char* name;
  double beta;
  bool hessian, many;
};
constexpr Method kMethods[] = {{"plain unlearning", 0, false, false},
                               {"first order", kBeta, false, false},
                               {"Moreau, one kind", kBeta, true, false},
                               {"Moreau, many kinds", kBeta, true, true}};

/// K = 5 steps of the fixed point with γ = 1, as in the authors' code; for the first-order method γ → 0, where the derivative is
/// I.
std::shared_ptr<Moreau> moreau(bool hessian) {
  RichardsonOptions options;
  options.iterations = hessian ? 5 : 1;
  return std::make_shared<Moreau>(std::make_unique<Richardson>(options), MoreauOptions{.gamma = hessian ? 1.0 : 1e-6});
}

struct Unlearned {
  at::Tensor weights;
  int64_t halved = 0, lost = 0;  // outer steps with a WARN, with a BAD
};

Unlearned unlearn(const Denoiser& denoiser, const Latents& data, const at::Tensor& original, const Method& method, int64_t steps,
                  int64_t seed) {
  const Unlearning problem(denoiser, data, original, method.beta);
  const AutodiffOracle oracle(problem);
  DoubleLoopOptions options;
  options.start = Start::kCold;
  options.warm_q = false;
  options.seed = static_cast<uint64_t>(seed);
  options.hvp_batches = BatchPlan::shuffled(Unlearning::kSet, 64, Stream(options.seed, "resalign products"));
  const Recipe none{.adam = false, .steps = 0};
  std::shared_ptr<InnerSolver> solver = method.beta == 0 ? none.solver(Unlearning::kSet, seed)
                                        : method.many    ? many_kinds(seed)
                                                         : one_kind(seed);
  const DoubleLoop loop(oracle, solver, moreau(method.hessian), std::make_shared<OuterAdam>(OuterAdamOptions{.lr = 1e-3}),
                        options);
  State state = loop.init();
  Unlearned found;
  for (int64_t k = 0; k < steps; ++k) {
    const Record record = loop.step(state, 1);
    if (record.grade == Grade::kWarn) ++found.halved;
    if (record.grade == Grade::kBad) ++found.lost;
  }
  found.weights = state.tensor("x");
  return found;
}

// --- Attacks: fine-tunings of other kinds, on data that unlearning has not seen ---

struct Attack {
  const char* name;
  std::vector<int64_t> classes;
  Recipe recipe;
  double harmful = 0;  // share of harmful samples among them
};
const std::vector<Attack>& attacks() {
  static const std::vector<Attack> all = {{"Adam, 100 steps", {0, 2, 3}, {true, 1e-3, 100}},
                                          {"Adam, 500 steps", {4, 5, 6, 8}, {true, 1e-3, 500}},
                                          {"SGD, 200 steps", {7, 8, 9}, {false, 0.05, 200}},
                                          {"20 % trousers, Adam, 100", {0, 2, 3}, {true, 1e-3, 100}, 0.2}};
  return all;
}
constexpr size_t kLongest = 1;

at::Tensor attacked(const Denoiser& denoiser, const Latents& data, const at::Tensor& weights, const Attack& attack, double length,
                    int64_t seed) {
  const auto count = static_cast<int64_t>(400 * (1 - attack.harmful));
  Latents samples = data.of(attack.classes, count);
  if (attack.harmful > 0) {
    const Latents harmful = data.of({kHarmful}, 400 - count);
    samples = {at::cat({samples.z, harmful.z}), at::cat({samples.labels, harmful.labels})};
  }
  Recipe recipe = attack.recipe;
  recipe.steps = static_cast<int64_t>(std::llround(length * static_cast<double>(recipe.steps)));
  return train(denoiser, samples, weights, recipe, seed + 1000);
}

double bytes_of_hypergradient(const Denoiser& denoiser, const Latents& data, const at::Tensor& weights, int64_t steps) {
  const Unlearning problem(denoiser, data, weights, kBeta);
  const AutodiffOracle oracle(problem);
  const auto solver = Recipe{.steps = steps}.solver(Unlearning::kSet, 0);
  const auto estimator = moreau(true);
  const MemoryMeter meter;
  InnerSolution solution = solver->solve(oracle, weights, 0, {.y = weights}, estimator->trajectory());
  EstimatorInput input{oracle, *solver, weights, solution, {}, {}, {}};
  estimator->estimate(input);
  return static_cast<double>(meter.peak_bytes());
}

}  // namespace

void study_resalign(StudyRun& run) {
  const int64_t images = run.setting<int64_t>("images"), outer_steps = run.setting<int64_t>("outer_steps");
  const double length = run.setting<double>("attack");
  const Recipe pretraining{.steps = run.setting<int64_t>("pretraining")};
  const std::vector<int64_t> seeds = run.seeds();
  const Denoiser denoiser;
  std::vector<std::string> names = {"original"};
  for (const Method& method : kMethods) names.push_back(method.name);
  // Sums over the seeds: error on trousers before and after each attack, on the others, and the steps whose fixed point was
  // halved.
  std::vector<std::vector<double>> sums(names.size(), std::vector<double>(attacks().size() + 2));
  std::vector<double> halved(names.size()), lost(names.size());
  for (size_t s = 0; s < seeds.size(); ++s) {
    const auto progress = [&](const std::string& doing, double part) {
      run.progress(doing, (static_cast<double>(s) + part) / static_cast<double>(seeds.size()));
    };
    progress("training the denoiser", 0);
    const auto [all, test] = latents(images + images / 2, 2000, seeds[s]);
    const Latents seen = all.rows(at::arange(images)), unseen = all.rows(at::arange(images, all.size()));
    const Latents trousers = test.of({kHarmful}, test.size()), others = test.of({0, 2, 3, 4, 5, 6, 7, 8, 9}, test.size());
    const at::Tensor original = train(denoiser, seen, denoiser.initial(seeds[s]), pretraining, seeds[s]);
    if (s == 0) {
      run.measure("bounded-memory",
                  bytes_of_hypergradient(denoiser, seen, original, 200) / bytes_of_hypergradient(denoiser, seen, original, 5));
    }
    std::vector<std::vector<double>> errors;
    for (size_t m = 0; m < names.size(); ++m) {
      progress(names[m], 0.1 + 0.9 * static_cast<double>(m) / static_cast<double>(names.size()));
      Unlearned unlearned{.weights = original};
      if (m > 0) unlearned = unlearn(denoiser, seen, original, kMethods[m - 1], outer_steps, seeds[s]);
      halved[m] += static_cast<double>(unlearned.halved);
      lost[m] += static_cast<double>(unlearned.lost);
      std::vector<double> row = {denoiser.error(unlearned.weights, trousers)};
      for (const Attack& attack : attacks()) {
        row.push_back(denoiser.error(attacked(denoiser, unseen, unlearned.weights, attack, length, seeds[s]), trousers));
      }
      row.push_back(denoiser.error(unlearned.weights, others));
      for (size_t i = 0; i < row.size(); ++i) sums[m][i] += row[i];
      errors.push_back(std::move(row));
    }
    const auto after = [&](size_t method) { return errors[method][1 + kLongest]; };
    run.measure("harmless-classes-stay", errors[4].back() / errors[0].back());
    if (!run.asks_for("sampling-helps")) continue;
    run.measure("benign-fine-tuning-undoes", after(1) / errors[1][0]);
    run.measure("hypergradient-keeps-more", after(3) / after(1));
    run.measure("more-than-first-order", after(3) / after(2));
    run.measure("sampling-helps", after(4) / after(3));
  }
  Table table{
      .title =
          "Denoising error on trousers (the higher, the safer) before and after each attack, and on the other classes; means",
      .columns = {{"weights", false}, {"before", true}},
      .rows = {}};
  for (const Attack& attack : attacks()) table.columns.push_back({attack.name, true});
  table.columns.insert(table.columns.end(), {{"other classes", true}, {"steps halved", true}, {"steps lost", true}});
  BarChart chart{.title = "Denoising error on trousers, before and after 500 steps of Adam on harmless classes",
                 .label_name = "weights",
                 .value_label = "denoising error: the higher, the safer",
                 .labels = names,
                 .series = {{"before", {}}, {"after", {}}}};
  const auto n = static_cast<double>(seeds.size());
  for (size_t m = 0; m < names.size(); ++m) {
    Table::Row row{{Cell(names[m])}};
    for (const double sum : sums[m]) row.cells.push_back(format_fixed(sum / n, 2));
    row.cells.push_back(format_fixed(halved[m] / n, 1));
    row.cells.push_back(format_fixed(lost[m] / n, 1));
    table.rows.push_back(std::move(row));
    chart.series[0].values.push_back(sums[m][0] / n);
    chart.series[1].values.push_back(sums[m][1 + kLongest] / n);
  }
  run.picture(std::move(chart));
  run.show(std::move(table));
}

}  // namespace bilevel
