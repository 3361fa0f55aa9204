#include "studies/study.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>

#include "bilevel/core/clock.h"
#include "bilevel/core/memory_meter.h"
#include "bilevel/hypergrad/evograd.h"
#include "bilevel/hypergrad/t1_t2.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/outer/adam.h"
#include "bilevel/problem/function_problem.h"
#include "bilevel/problem/loss.h"
#include "bilevel/problem/model.h"
#include "studies/images.h"

namespace bilevel {
namespace {

// --- One dimension ---

struct Moments {
  double mean = 0, deviation = 0;
};

Moments estimates_at(double lambda, int64_t copies, int64_t trials, int64_t seed) {
  const auto number = [](double value) { return at::full({1}, value, at::kDouble); };
  const FunctionProblem problem(
      {.inner_loss = [](const at::Tensor& x, const at::Tensor& y) { return ((y - 1).square() + x * y.square()).sum(); },
       .outer_loss = [](const at::Tensor&, const at::Tensor& y) { return (y - 0.5).square().sum(); },
       .x0 = number(lambda),
       .y0 = number(0)});
  const AutodiffOracle oracle(problem);
  const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{}), {.lr = 0.1, .steps = 0});
  const EvoGrad evograd({.copies = copies, .sigma = 1.0, .temperature = 0.5, .noise = EvoGradOptions::Noise::kGaussian});
  const at::Tensor y = Stream(static_cast<uint64_t>(seed), fmt::format("evograd y at {}", lambda)).at(copies).normal({trials, 1});
  std::vector<double> values;
  for (int64_t i = 0; i < trials; ++i) {
    InnerSolution solution;
    solution.y = y[i];
    Batch outer;
    outer.seed = static_cast<uint64_t>((seed + 1) * 1'000'003 + i);
    EstimatorInput input{oracle, solver, number(lambda), solution, {}, outer, {}};
    values.push_back(evograd.estimate(input).value.item<double>());
  }
  const at::Tensor all = at::tensor(values, at::kDouble);
  return {all.mean().item<double>(), all.std().item<double>()};
}

double correlation(const std::vector<double>& a, const std::vector<double>& b) {
  const at::Tensor both = at::stack({at::tensor(a, at::kDouble), at::tensor(b, at::kDouble)});
  return at::corrcoef(both)[0][1].item<double>();
}

void one_dimension(StudyRun& run) {
  const int64_t trials = run.setting<int64_t>("trials");
  const std::vector<double> lambdas = {0.1, 0.5, 1.0, 1.5, 2.0};
  std::vector<double> truth;
  for (const double l : lambdas) truth.push_back((l - 1) / std::pow(l + 1, 3));
  LineChart chart{.title = "Hypergradients of the one-dimensional problem, mean of the first seed's estimates",
                  .x_label = "λ",
                  .y_label = "∂f/∂λ",
                  .series = {{"true", lambdas, truth}}};
  const std::vector<int64_t> seeds = run.seeds();
  for (size_t s = 0; s < seeds.size(); ++s) {
    run.progress("one dimension", 0.1 * static_cast<double>(s) / static_cast<double>(seeds.size()));
    double spread_of_two = 0;
    for (const int64_t copies : {2, 10, 100}) {
      LineChart::Series series{fmt::format("K = {}", copies), lambdas, {}};
      double spread = 0, right = 0;
      for (size_t i = 0; i < lambdas.size(); ++i) {
        const Moments m = estimates_at(lambdas[i], copies, trials, seeds[s]);
        series.y.push_back(m.mean);
        spread += m.deviation / static_cast<double>(lambdas.size());
        if (lambdas[i] != 1.0 && m.mean * truth[i] > 0) right += 0.25;
      }
      if (copies == 2) spread_of_two = spread;
      if (copies == 100) {
        run.measure("sign-in-one-dimension", right);
        run.measure("shape-in-one-dimension", correlation(series.y, truth));
        run.measure("more-copies-are-quieter", spread_of_two / spread);
      }
      if (s == 0) chart.series.push_back(std::move(series));
    }
  }
  run.picture(std::move(chart));
}

// --- Fashion-MNIST: what the problems below have in common ---

struct Images {
  at::Tensor pixels, labels;  // [n, 28, 28], int64 [n]
  Images rows(const at::Tensor& which) const { return {pixels.index_select(0, which), labels.index_select(0, which)}; }
};

Images fashion(const std::string& split, int64_t count, int64_t seed) {
  auto [pixels, labels] = draw_fashion("evograd", split, count, seed);
  return {pixels, labels};
}

/// A classifier trained on `inner` and judged on `outer`, of which losses and what x does to them are left open.
class ImageProblem : public Problem {
 public:
  ImageProblem(const ModelOptions& model, Images inner, Images outer)
      : model_(make_model(model, {28, 28}, 10)), inner_(std::move(inner)), outer_(std::move(outer)) {}

  const Layout& outer_layout() const override { return outer_layout_; }
  const Layout& inner_layout() const override { return model_->layout(); }
  int64_t inner_samples() const override { return inner_.labels.size(0); }
  int64_t outer_samples() const override { return outer_.labels.size(0); }
  at::Tensor initial_inner(const at::Tensor& /*x*/, int64_t slice) const override {
    return model_->initial("random", Stream(static_cast<uint64_t>(slice), "evograd weights").at(0), at::kFloat);
  }
  at::Tensor outer_loss(const at::Tensor& /*x*/, const at::Tensor& y, const Batch& batch) const override {
    const Images images = of(outer_, batch);
    return losses(y, images.pixels, images.labels).mean();
  }
  double accuracy(const at::Tensor& y, const Images& images) const {
    const at::NoGradGuard no_grad;
    return 100 * model_->outputs(y, images.pixels).argmax(0).eq(images.labels).to(at::kDouble).mean().item<double>();
  }

 protected:
  static Images of(const Images& all, const Batch& batch) { return batch.full() ? all : all.rows(batch.samples); }
  at::Tensor losses(const at::Tensor& y, const at::Tensor& pixels, const at::Tensor& labels) const {
    return loss_.losses(model_->outputs(y, pixels), loss_.targets(labels, 10, at::kFloat, "images"));
  }
  std::unique_ptr<Model> model_;
  Images inner_, outer_;
  Layout outer_layout_;
  Loss loss_{"softmax"};
};

struct MetaTraining {
  int64_t steps = 0, batch = 64, seed = 0;
  std::function<std::unique_ptr<UpdateRule>()> rule;  // inner
  double lr = 1e-3, outer_lr = 1e-3;
  const Estimator* estimator = nullptr;  // none: x stays
};

struct Trained {
  at::Tensor x, y;
};

/// One step of the inner rule, one hypergradient and one step of Adam on x, and so on. The meta-optimiser has a small ε and no
/// weight decay, for the hypergradients are tiny.
Trained train(const Problem& problem, at::Tensor x, const MetaTraining& how) {
  const auto seed = static_cast<uint64_t>(how.seed);
  RuleSolverOptions options;
  options.lr = how.lr;
  options.steps = 1;
  options.carry_state = true;
  const RuleSolver solver(how.rule(), options,
                          BatchPlan::shuffled(problem.inner_samples(), how.batch, Stream(seed, "evograd batches")));
  const BatchPlan validation = BatchPlan::shuffled(problem.outer_samples(), how.batch, Stream(seed, "evograd validation"));
  const AutodiffOracle oracle(problem);
  const OuterAdam adam({.lr = how.outer_lr, .eps = 1e-15});
  State state;
  InnerStart start{.y = problem.initial_inner(x, how.seed)};
  for (int64_t t = 0; t < how.steps; ++t) {
    TrajectoryPolicy policy;
    policy.look_at_end = false;
    InnerSolution solution = solver.solve(oracle, x, 0, start, policy);
    start = {solution.y, solution.state, solution.state_steps, t + 1};
    if (how.estimator == nullptr) continue;
    Batch outer;
    outer.step = t;
    outer.samples = validation.samples(t);
    outer.seed = seed * 1'000'003 + static_cast<uint64_t>(t);
    EstimatorInput input{oracle, solver, x, solution, solver.batch(t, 0), outer, {}};
    x = adam.step(state, x, how.estimator->estimate(input).value);
  }
  return {x, start.y};
}

// --- Rotation: x is the angle, in radians, by which training images are turned ---

at::Tensor rotate(const at::Tensor& pixels, const at::Tensor& angle) {
  const int64_t n = pixels.size(0);
  const at::Tensor c = angle.cos(), s = angle.sin(), zero = at::zeros_like(angle);
  const at::Tensor turn = at::stack({c, -s, zero, s, c, zero}).view({1, 2, 3}).expand({n, 2, 3});
  const at::Tensor grid = at::affine_grid_generator(turn, {n, 1, 28, 28}, /*align_corners=*/false);
  return at::grid_sampler(pixels.unsqueeze(1), grid, /*bilinear*/ 0, /*zeros*/ 0, /*align_corners=*/false).squeeze(1);
}

class RotationProblem final : public ImageProblem {
 public:
  RotationProblem(const ModelOptions& model, Images inner, Images outer)
      : ImageProblem(model, std::move(inner), std::move(outer)) {
    outer_layout_.add("angle", {});
  }
  at::Tensor initial_outer() const override { return at::zeros({1}, at::kFloat); }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    const Images images = of(inner_, batch);
    return losses(y, rotate(images.pixels, x[0]), images.labels).mean();
  }
};

void learn_rotation(StudyRun& run) {
  const int64_t steps = run.setting<int64_t>("rotation_steps");
  const std::vector<int64_t> seeds = run.seeds();
  if (!run.asks_for("rotation-accuracy")) return;
  constexpr double kDegree = 0.017453292519943295;
  const at::Tensor angle = at::scalar_tensor(30 * kDegree, at::kFloat);
  const auto turned = [&](const Images& images) -> Images { return {rotate(images.pixels, angle), images.labels}; };
  Table table{.title = "Rotation: accuracy on images turned by 30 degrees, in per cent",
              .columns = {{"seed", true}, {"no meta-learning", true}, {"EvoGrad", true}, {"learned angle", true}},
              .rows = {}};
  const EvoGrad evograd;
  for (size_t i = 0; i < seeds.size(); ++i) {
    run.progress("rotation", 0.15 + 0.4 * static_cast<double>(i) / static_cast<double>(seeds.size()));
    const Images train_images = fashion("train", 11000, seeds[i]), test = turned(fashion("test", 2000, seeds[i]));
    const RotationProblem problem({.kind = "cnn", .channels = {6, 16}, .kernel = 5}, train_images.rows(at::arange(1000, 11000)),
                                  turned(train_images.rows(at::arange(1000))));
    MetaTraining how{
        .steps = steps, .seed = seeds[i], .rule = [] { return std::make_unique<AdamRule>(AdamRuleOptions{}); }, .outer_lr = 1e-2};
    const Trained plain = train(problem, problem.initial_outer(), how);
    how.estimator = &evograd;
    const Trained learned = train(problem, problem.initial_outer(), how);
    const double before = problem.accuracy(plain.y, test), after = problem.accuracy(learned.y, test);
    const double degrees = learned.x.item<double>() / kDegree;
    run.measure("rotation-accuracy", after - before);
    run.measure("rotation-angle", degrees);
    table.rows.push_back({{Cell(std::to_string(seeds[i])), Cell(format_fixed(before, 1)), Cell(format_fixed(after, 1)),
                           Cell(format_fixed(degrees, 1))}});
  }
  run.show(std::move(table));
}

// --- Meta-Weight-Net: x is a small network that weighs each sample by its loss ---

class WeightNetProblem final : public ImageProblem {
 public:
  static constexpr int64_t kUnits = 100;
  WeightNetProblem(const ModelOptions& model, Images inner, Images outer)
      : ImageProblem(model, std::move(inner), std::move(outer)) {
    outer_layout_.add("w1", {kUnits}).add("b1", {kUnits}).add("w2", {kUnits}).add("b2", {});
  }
  /// As PyTorch starts its layers; the weights of the samples are near one half.
  at::Tensor initial_outer() const override {
    const at::Tensor u = 2 * Stream(0, "evograd weight net").at(0).uniform({3 * kUnits + 1}) - 1;
    return at::cat({u.narrow(0, 0, 2 * kUnits), 0.1 * u.narrow(0, 2 * kUnits, kUnits + 1)}).to(at::kFloat);
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    const Images images = of(inner_, batch);
    const at::Tensor each = losses(y, images.pixels, images.labels);
    const std::vector<at::Tensor> net = outer_layout_.split(x);
    const at::Tensor hidden = at::relu(each.detach().unsqueeze(1) * net[0] + net[1]);  // a weight is no function of y
    const at::Tensor weights = at::sigmoid(hidden.matmul(net[2]) + net[3]);
    return (weights * each).sum() / weights.sum();
  }
};

Images with_wrong_labels(const Images& images, double share, int64_t seed) {
  const Stream stream(static_cast<uint64_t>(seed), "evograd label noise");
  const int64_t n = images.labels.size(0);
  return {images.pixels, at::where(stream.at(0).uniform({n}) < share, stream.at(1).integers(10, {n}), images.labels)};
}

std::unique_ptr<UpdateRule> momentum() {
  SgdRuleOptions options;
  options.momentum = 0.9;
  options.weight_decay = 5e-4;
  return std::make_unique<SgdRule>(options);
}

void learn_weights(StudyRun& run) {
  const int64_t steps = run.setting<int64_t>("weight_steps");
  const double noise = run.setting<double>("label_noise");
  const std::vector<int64_t> seeds = run.seeds();
  if (!run.asks_for("weights-help")) return;
  Table table{.title = "Label noise: test accuracy in per cent",
              .columns = {{"seed", true},
                          {"unweighted", true},
                          {"t1-t2", true},
                          {"EvoGrad, σ = 0.001", true},
                          {"EvoGrad, σ = 0.01", true}},
              .rows = {}};
  const T1T2 second_order;
  const EvoGrad small, large({.sigma = 1e-2});
  for (size_t i = 0; i < seeds.size(); ++i) {
    run.progress("label noise", 0.55 + 0.45 * static_cast<double>(i) / static_cast<double>(seeds.size()));
    const Images all = fashion("train", 4500, seeds[i]), test = fashion("test", 2000, seeds[i]);
    const WeightNetProblem problem({.kind = "mlp", .hidden = {128, 128}, .activation = "relu"},
                                   with_wrong_labels(all.rows(at::arange(500, 4500)), noise, seeds[i]),
                                   all.rows(at::arange(500)));
    const auto accuracy = [&](const Estimator* estimator) {
      const MetaTraining how{
          .steps = steps, .batch = 100, .seed = seeds[i], .rule = momentum, .lr = 0.05, .estimator = estimator};
      return problem.accuracy(train(problem, problem.initial_outer(), how).y, test);
    };
    const double unweighted = accuracy(nullptr), t1t2 = accuracy(&second_order), with_small = accuracy(&small),
                 with_large = accuracy(&large);
    run.measure("weights-help", with_large - unweighted);
    Table::Row row{{Cell(std::to_string(seeds[i]))}};
    for (const double value : {unweighted, t1t2, with_small, with_large}) row.cells.push_back(format_fixed(value, 1));
    table.rows.push_back(std::move(row));
  }
  run.show(std::move(table));
}

// --- Cost of one hypergradient ---

struct CostOfOne {
  double seconds = 0, bytes = 0;
};

Cell text_of(const CostOfOne& cost) { return Cell(format_seconds(cost.seconds) + ", " + format_bytes(cost.bytes)); }

CostOfOne cost_of(const Estimator& estimator, const Problem& problem) {
  const AutodiffOracle oracle(problem);
  const RuleSolver solver(momentum(), {.lr = 0.1, .steps = 1});
  const at::Tensor x = problem.initial_outer();
  InnerSolution solution;
  solution.y = problem.initial_inner(x, 0);
  solution.previous = solution.y;
  solution.step_size = at::scalar_tensor(0.1, at::kFloat);
  EstimatorInput input{oracle, solver, x, solution, {}, {}, {}};
  const MemoryMeter meter;
  const Clock::time_point began = Clock::now();
  estimator.estimate(input);
  return {seconds_since(began), static_cast<double>(meter.peak_bytes())};
}

/// Medians, the two in turn.
std::pair<CostOfOne, CostOfOne> costs_of(const Problem& problem, int64_t repeats) {
  std::vector<double> seconds[2];
  CostOfOne costs[2];
  for (int64_t k = 0; k < repeats; ++k) {
    costs[0] = cost_of(EvoGrad(), problem);
    costs[1] = cost_of(T1T2(), problem);
    for (const int i : {0, 1}) seconds[i].push_back(costs[i].seconds);
  }
  for (const int i : {0, 1}) {
    std::ranges::nth_element(seconds[i], seconds[i].begin() + repeats / 2);
    costs[i].seconds = seconds[i][static_cast<size_t>(repeats / 2)];
  }
  return {costs[0], costs[1]};
}

void compare_costs(StudyRun& run) {
  const int64_t repeats = run.setting<int64_t>("repeats");
  run.progress("cost", 0.1);
  const Images images = fashion("train", 128, 0);
  const Images inner = images.rows(at::arange(64)), outer = images.rows(at::arange(64, 128));
  const auto costs = [&](const ModelOptions& model) { return costs_of(WeightNetProblem(model, inner, outer), repeats); };
  const auto [evograd, second_order] = costs({.kind = "cnn", .channels = {32, 32, 32}});
  const auto [small_evograd, small_second_order] = costs({.kind = "mlp", .hidden = {128, 128}});
  run.measure("memory", evograd.bytes / second_order.bytes);
  run.measure("time", evograd.seconds / second_order.seconds);
  Table table{.title = "One hypergradient by a weight function, batch 64",
              .columns = {{"network", false}, {"EvoGrad, K = 2", true}, {"t1-t2", true}, {"time, EvoGrad/t1-t2", true}},
              .rows = {}};
  const auto add = [&](const char* name, const CostOfOne& a, const CostOfOne& b) {
    table.rows.push_back({{Cell(name), text_of(a), text_of(b), Cell(format_number(a.seconds / b.seconds, 2))}});
  };
  add("three convolutions of 32 channels", evograd, second_order);
  add("784-128-128-10", small_evograd, small_second_order);
  run.show(std::move(table));
}

// --- Feature-wise transforms: x is how much noise each channel gets in training, so that a classifier of few examples serves a
// domain that it has not seen ---

constexpr int64_t kDomains = 5, kSide = 14, kTuningSeed = 1000;
constexpr const char* kDomainNames[kDomains] = {"plain", "inverted", "faded", "blurred", "textured"};

/// The same images as each domain has them, and where those of each class are.
struct Domains {
  std::vector<at::Tensor> pixels;    // [n, 1, 14, 14]
  std::vector<at::Tensor> of_class;  // int64
};

Domains domains_of(const std::string& split, int64_t count, int64_t seed) {
  const Images images = fashion(split, count, seed);
  const at::Tensor plain = images.pixels.unsqueeze(1);
  // A smooth texture for each image, behind what is brighter than it.
  const at::Tensor coarse = Stream(static_cast<uint64_t>(seed), "evograd textures " + split).at(0).uniform({count, 1, 7, 7});
  const at::Tensor texture = at::upsample_bilinear2d(coarse.to(at::kFloat), {28, 28}, /*align_corners=*/false);
  Domains domains;
  for (const at::Tensor& one : {plain, 1 - plain, 0.35 + 0.3 * plain, at::avg_pool2d(plain, 7, 1, 3), plain.maximum(texture)}) {
    domains.pixels.push_back(at::avg_pool2d(one, 28 / kSide));
  }
  for (int64_t c = 0; c < 10; ++c) domains.of_class.push_back(images.labels.eq(c).nonzero().squeeze(1));
  return domains;
}

/// Prototypes: an image is of the class whose mean embedding of a few examples is nearest. Each inner step is an episode in one
/// of the domains that are seen, with transforms z ↦ (1 + σ₁ n₁) z + σ₂ n₂ of the normalised features of each
/// channel, n ~ N(0, 1); each outer one an episode in another of them, without (Tseng, Lee, Huang & Yang 2020).
class TransformProblem final : public Problem {
 public:
  static constexpr int64_t kWay = 4, kShot = 5, kQuery = 5, kGroups = 4;
  static constexpr int64_t kChannels[2] = {16, 32};

  /// Six classes drawn by `seed` and all domains but `unseen` are there to be trained on.
  TransformProblem(std::shared_ptr<const Domains> train, std::shared_ptr<const Domains> test, int64_t seed, int64_t unseen,
                   bool transforms)
      : train_(std::move(train)),
        test_(std::move(test)),
        seed_(static_cast<uint64_t>(seed)),
        unseen_(unseen),
        transforms_(transforms),
        classes_(Stream(seed_, "evograd classes").at(0).permutation(10)) {
    for (int64_t layer = 0, in = 1; layer < 2; in = kChannels[layer++]) {
      const std::string name = fmt::format("conv{}", layer);
      inner_layout_.add(name + ".weight", {kChannels[layer], in, 3, 3}).add(name + ".bias", {kChannels[layer]});
      outer_layout_.add(fmt::format("scale{}", layer), {kChannels[layer]}).add(fmt::format("shift{}", layer), {kChannels[layer]});
    }
  }

  const Layout& outer_layout() const override { return outer_layout_; }
  const Layout& inner_layout() const override { return inner_layout_; }
  // Episodes are drawn by the step; the plans of batches need a number.
  int64_t inner_samples() const override { return 1 << 20; }
  int64_t outer_samples() const override { return 1 << 20; }
  /// The deviations that the transforms begin with in that paper, and keep where they are not learned.
  at::Tensor initial_outer() const override {
    std::vector<at::Tensor> parts;
    for (const int64_t channels : kChannels) {
      parts.push_back(at::full({channels}, 0.3, at::kFloat));
      parts.push_back(at::full({channels}, 0.5, at::kFloat));
    }
    return at::cat(parts);
  }
  at::Tensor initial_inner(const at::Tensor& /*x*/, int64_t slice) const override {
    Draw draw = Stream(static_cast<uint64_t>(slice), "evograd weights").at(0);
    std::vector<at::Tensor> parts;
    for (const Part& part : inner_layout_.parts()) {
      const double bound = 1 / std::sqrt(part.shape.size() == 1 ? 9.0 : static_cast<double>(part.size / part.shape[0]));
      parts.push_back((2 * draw.uniform({part.size}) - 1) * bound);
    }
    return at::cat(parts).to(at::kFloat);
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return episode_loss(transforms_ ? x : at::Tensor(), y, seen(batch.step, 0), Stream(seed_, "evograd seen").at(batch.step));
  }
  at::Tensor outer_loss(const at::Tensor& /*x*/, const at::Tensor& y, const Batch& batch) const override {
    return episode_loss({}, y, seen(batch.step, 1), Stream(seed_, "evograd pseudo-unseen").at(batch.step));
  }
  /// max(x, 0), smoothed on a hundredth.
  static at::Tensor deviations_of(const at::Tensor& x) { return at::softplus(x, 100); }
  /// On classes and in a domain that are new, in per cent.
  double accuracy(const at::Tensor& y, int64_t episodes) const {
    const at::NoGradGuard no_grad;
    const at::Tensor embedded = embed({}, y, test_->pixels[static_cast<size_t>(unseen_)], {});
    double right = 0;
    for (int64_t e = 0; e < episodes; ++e) {
      Draw draw = Stream(seed_, "evograd new classes").at(e);
      const at::Tensor samples = drawn(*test_, classes_.narrow(0, 6, kWay), draw);
      right += logits(embedded.index_select(0, samples)).argmax(1).eq(targets()).to(at::kDouble).mean().item<double>();
    }
    return 100 * right / static_cast<double>(episodes);
  }

 private:
  // Of the domains that are seen, the one that the episodes of `step` take in the inner (0) or the outer loss (1).
  int64_t seen(int64_t step, int64_t role) const {
    const int64_t domain = Stream(seed_, "evograd domains").at(step).permutation(kDomains - 1)[role].item<int64_t>();
    return domain < unseen_ ? domain : domain + 1;
  }
  // int64 [kWay (kShot + kQuery)], class by class.
  static at::Tensor drawn(const Domains& domains, const at::Tensor& classes, Draw& draw) {
    std::vector<at::Tensor> samples;
    for (int64_t i = 0; i < kWay; ++i) {
      const at::Tensor& all = domains.of_class[static_cast<size_t>(classes[i].item<int64_t>())];
      samples.push_back(all.index_select(0, draw.permutation(all.size(0)).narrow(0, 0, kShot + kQuery)));
    }
    return at::cat(samples);
  }
  static at::Tensor targets() { return at::arange(kWay, at::kLong).repeat_interleave(kQuery); }

  // [n, 288]; x undefined: without transforms.
  at::Tensor embed(const at::Tensor& x, const at::Tensor& y, const at::Tensor& pixels, const at::Tensor& noise) const {
    const std::vector<at::Tensor> weights = inner_layout_.split(y);
    std::vector<at::Tensor> deviations, drawn;
    if (x.defined()) {
      deviations = outer_layout_.split(deviations_of(x));
      drawn = outer_layout_.split(noise);
    }
    at::Tensor h = pixels;
    for (size_t layer = 0; layer < 2; ++layer) {
      h = at::conv2d(h, weights[2 * layer], weights[2 * layer + 1], 1, 1);
      h = at::group_norm(h, kGroups);
      if (x.defined()) {
        const auto of_channels = [&](size_t i) { return (deviations[i] * drawn[i]).view({1, -1, 1, 1}); };
        h = h * (1 + of_channels(2 * layer)) + of_channels(2 * layer + 1);
      }
      h = at::avg_pool2d(h.relu(), 2);
    }
    return h.flatten(1);
  }
  // [kWay kQuery, kWay]: minus the squared distances from the prototypes, in units of the root of the dimension.
  static at::Tensor logits(const at::Tensor& embedded) {
    const at::Tensor each = embedded.view({kWay, kShot + kQuery, -1});
    const at::Tensor prototypes = each.narrow(1, 0, kShot).mean(1), queries = each.narrow(1, kShot, kQuery).flatten(0, 1);
    const at::Tensor apart = (queries.unsqueeze(1) - prototypes.unsqueeze(0)).square().sum(2);
    return -apart / std::sqrt(static_cast<double>(embedded.size(1)));
  }
  at::Tensor episode_loss(const at::Tensor& x, const at::Tensor& y, int64_t domain, Draw draw) const {
    const at::Tensor classes = classes_.narrow(0, 0, 6).index_select(0, draw.permutation(6).narrow(0, 0, kWay));
    const at::Tensor samples = drawn(*train_, classes, draw);
    const at::Tensor noise = draw.normal({outer_layout_.size()}).to(y.scalar_type());
    const at::Tensor pixels = train_->pixels[static_cast<size_t>(domain)].index_select(0, samples);
    return at::cross_entropy_loss(logits(embed(x, y, pixels, noise)), targets());
  }

  std::shared_ptr<const Domains> train_, test_;
  uint64_t seed_;
  int64_t unseen_;
  bool transforms_;
  at::Tensor classes_;  // the first six are trained on, the last four tested
  Layout outer_layout_, inner_layout_;
};

struct TransformData {
  std::shared_ptr<const Domains> train, test;
};

TransformData transform_data(int64_t seed) {
  const auto of = [&](const std::string& split) { return std::make_shared<const Domains>(domains_of(split, 4000, seed)); };
  return {of("train"), of("test")};
}

struct LearnedTransforms {
  double accuracy = 0;
  std::string deviations;  // of scales and of shifts, means over the channels
};

LearnedTransforms learn_transforms(const TransformProblem& problem, const Estimator* estimator, double rate, int64_t seed,
                                   int64_t steps, int64_t episodes) {
  const MetaTraining how{.steps = steps,
                         .batch = 1,
                         .seed = seed,
                         .rule = [] { return std::make_unique<AdamRule>(AdamRuleOptions{}); },
                         .outer_lr = rate,
                         .estimator = estimator};
  const Trained trained = train(problem, problem.initial_outer(), how);
  const std::vector<at::Tensor> parts = problem.outer_layout().split(TransformProblem::deviations_of(trained.x));
  const auto mean = [&](size_t i) { return at::cat({parts[i], parts[i + 2]}).mean().item<double>(); };
  return {problem.accuracy(trained.y, episodes), fmt::format("{:.2f}, {:.2f}", mean(0), mean(1))};
}

void serve_unseen_domains(StudyRun& run) {
  const int64_t steps = run.setting<int64_t>("transform_steps"), episodes = run.setting<int64_t>("transform_episodes");
  const int64_t repeats = run.setting<int64_t>("repeats");
  const auto rates = run.setting<std::vector<double>>("transform_rates");
  const std::vector<int64_t> seeds = run.seeds();

  run.progress("transforms, cost", 0.7);
  const TransformData some = transform_data(kTuningSeed);
  const auto [cheap, second_order_cost] = costs_of(TransformProblem(some.train, some.test, kTuningSeed, 0, true), repeats);
  run.measure("transforms-memory", cheap.bytes / second_order_cost.bytes);
  if (!run.asks_for("transforms-on-par")) return;
  run.measure("transforms-time", cheap.seconds / second_order_cost.seconds);

  struct Way {
    std::string name;
    std::unique_ptr<Estimator> estimator;
    bool transforms = true;
    double rate = 0;
  };
  std::vector<Way> ways(4);
  ways[0] = {.name = "no transforms", .estimator = nullptr, .transforms = false};
  ways[1] = {.name = "fixed", .estimator = nullptr};
  ways[2] = {.name = "learned, t1-t2", .estimator = std::make_unique<T1T2>()};
  ways[3] = {.name = "learned, EvoGrad", .estimator = std::make_unique<EvoGrad>()};
  constexpr size_t kNone = 0, kFixed = 1, kSecondOrder = 2, kEvoGrad = 3;
  const auto learn = [&](const Way& way, const TransformData& data, int64_t seed, int64_t unseen, double rate) {
    const TransformProblem problem(data.train, data.test, seed, unseen, way.transforms);
    return learn_transforms(problem, way.estimator.get(), rate, seed, steps, episodes);
  };
  // The rate that is best on a seed of its own, with the first and the last domain left out.
  for (const size_t i : {kSecondOrder, kEvoGrad}) {
    run.progress("transforms, rates", 0.7);
    double best = 0;
    for (const double rate : rates) {
      double accuracy = 0;
      for (const int64_t unseen : {int64_t{0}, kDomains - 1})
        accuracy += learn(ways[i], some, kTuningSeed, unseen, rate).accuracy;
      if (accuracy > best) best = accuracy, ways[i].rate = rate;
    }
  }

  Table table{.title = "Feature-wise transforms: accuracy on new classes in the domain left out, in per cent",
              .columns = {{"seed", true}, {"domain left out", false}},
              .rows = {}};
  for (const Way& way : ways) {
    table.columns.push_back({way.estimator ? fmt::format("{}, rate {}", way.name, way.rate) : way.name, true});
  }
  for (const size_t i : {kSecondOrder, kEvoGrad}) table.columns.push_back({"scales, shifts: " + ways[i].name, true});
  for (size_t s = 0; s < seeds.size(); ++s) {
    const TransformData data = transform_data(seeds[s]);
    std::vector<double> above[4];  // EvoGrad's accuracy above each, by domain
    for (int64_t unseen = 0; unseen < kDomains; ++unseen) {
      const double done = static_cast<double>(s) + static_cast<double>(unseen) / static_cast<double>(kDomains);
      run.progress("transforms", 0.75 + 0.25 * done / static_cast<double>(seeds.size()));
      std::vector<LearnedTransforms> found;
      for (const Way& way : ways) found.push_back(learn(way, data, seeds[s], unseen, way.rate));
      Table::Row row{{Cell(std::to_string(seeds[s])), Cell(kDomainNames[unseen])}};
      for (size_t i = 0; i < ways.size(); ++i) {
        above[i].push_back(found[kEvoGrad].accuracy - found[i].accuracy);
        row.cells.push_back(Cell(format_fixed(found[i].accuracy, 1)));
      }
      for (const size_t i : {kSecondOrder, kEvoGrad}) row.cells.push_back(Cell(found[i].deviations));
      table.rows.push_back(std::move(row));
    }
    run.measure("transforms-on-par", Measured{above[kSecondOrder]}.mean());
    run.measure("transforms-help", Measured{above[kNone]}.mean());
    run.measure("transforms-learned", Measured{above[kFixed]}.mean());
  }
  run.show(std::move(table));
  run.show(Table{.title = "One hypergradient of the transforms, an episode of 40 images",
                 .columns = {{"EvoGrad, K = 2", true}, {"t1-t2", true}, {"time, EvoGrad/t1-t2", true}},
                 .rows = {{{text_of(cheap), text_of(second_order_cost),
                            Cell(format_number(cheap.seconds / second_order_cost.seconds, 2))}}}});
}

}  // namespace

void study_evograd(StudyRun& run) {
  one_dimension(run);
  compare_costs(run);
  learn_rotation(run);
  learn_weights(run);
  serve_unseen_domains(run);
}

}  // namespace bilevel
