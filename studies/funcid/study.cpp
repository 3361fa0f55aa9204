#include "studies/study.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "bilevel/algorithm/double_loop.h"
#include "bilevel/hypergrad/functional.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/dense.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/outer/adam.h"
#include "bilevel/problem/model.h"

namespace bilevel {
namespace {

// --- Regression with an instrument ---

struct Observed {
  at::Tensor instrument, treatment, outcome;  // [n, ·], [n, ·], [n]
};

struct Data {
  Observed inner, outer, held_out;
  at::Tensor grid, truth;  // treatments [m, ·], and the function sought at them [m]
};

ModelOptions network(std::vector<int64_t> hidden) { return {.kind = "mlp", .hidden = std::move(hidden), .activation = "tanh"}; }

/// x: weights of f, y: weights of h;  g = mean (h(s) − f(t))², f = mean (h(s) − outcome)².
class InstrumentProblem final : public Problem {
 public:
  InstrumentProblem(const Data& data, const ModelOptions& f, const ModelOptions& h, int64_t seed)
      : data_(data),
        f_(make_model(f, {data.inner.treatment.size(1)}, 1)),
        h_(make_model(h, {data.inner.instrument.size(1)}, 1)),
        seed_(static_cast<uint64_t>(seed)) {}
  const Layout& outer_layout() const override { return f_->layout(); }
  const Layout& inner_layout() const override { return h_->layout(); }
  at::Tensor initial_outer() const override { return f_->initial("random", Stream(seed_, "funcid f").at(0), dtype()); }
  at::Tensor initial_inner(const at::Tensor& /*x*/, int64_t /*slice*/) const override {
    return h_->initial("random", Stream(seed_, "funcid h").at(0), dtype());
  }
  bool has_outputs() const override { return true; }
  at::Tensor inner_outputs(const at::Tensor& y, const Batch&) const override { return h_->outputs(y, data_.inner.instrument); }
  at::Tensor inner_loss_of_outputs(const at::Tensor& x, const at::Tensor&, const at::Tensor& z, const Batch&) const override {
    return (z - f_->outputs(x, data_.inner.treatment)).square().mean();
  }
  bool has_outer_outputs() const override { return true; }
  at::Tensor outer_outputs(const at::Tensor& y, const Batch&) const override { return h_->outputs(y, data_.outer.instrument); }
  at::Tensor outer_loss_of_outputs(const at::Tensor&, const at::Tensor&, const at::Tensor& z, const Batch&) const override {
    return (z - data_.outer.outcome).square().mean();
  }
  std::optional<OutputLayer> output_layer() const override { return OutputLayer{"output.weight", "output.bias"}; }
  at::Tensor inner_features(const at::Tensor& y, const Batch&) const override { return h_->features(y, data_.inner.instrument); }
  at::Tensor outer_features(const at::Tensor& y, const Batch&) const override { return h_->features(y, data_.outer.instrument); }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return inner_loss_of_outputs(x, y, inner_outputs(y, b), b);
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return outer_loss_of_outputs(x, y, outer_outputs(y, b), b);
  }

  double held_out_loss(const at::Tensor& y) const {
    const at::NoGradGuard no_grad;
    return (h_->outputs(y, data_.held_out.instrument) - data_.held_out.outcome).square().mean().item<double>();
  }
  at::Tensor on_grid(const at::Tensor& x) const {
    const at::NoGradGuard no_grad;
    return f_->outputs(x, data_.grid).squeeze(0);
  }
  double error(const at::Tensor& x) const { return (on_grid(x) - data_.truth).square().mean().item<double>(); }
  const Model& f() const { return *f_; }

 private:
  at::ScalarType dtype() const { return data_.grid.scalar_type(); }
  const Data& data_;
  const std::unique_ptr<Model> f_, h_;
  const uint64_t seed_;
};

/// Regression of the outcome on the treatment, the confounder ignored: y are the weights of f.
class DirectProblem final : public Problem {
 public:
  DirectProblem(const Data& data, const Model& f)
      : f_(f),
        treatment_(at::cat({data.inner.treatment, data.outer.treatment})),
        outcome_(at::cat({data.inner.outcome, data.outer.outcome})) {}
  const Layout& outer_layout() const override { return none_; }
  const Layout& inner_layout() const override { return f_.layout(); }
  at::Tensor inner_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const override {
    return (f_.outputs(y, treatment_) - outcome_).square().mean();
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override { return inner_loss(x, y, b); }

 private:
  const Model& f_;
  const at::Tensor treatment_, outcome_;
  Layout none_;
};

constexpr double kRate = 3e-3;
constexpr int64_t kInnerSteps = 10;
constexpr int64_t kLookEvery = 10;  // outer steps between two looks at the held-out samples

std::unique_ptr<RuleSolver> adam(int64_t steps, bool carry = true) {
  RuleSolverOptions options;
  options.lr = kRate;
  options.steps = steps;
  options.carry_state = carry;
  return std::make_unique<RuleSolver>(std::make_unique<AdamRule>(AdamRuleOptions{}), options);
}

/// What has the smallest loss on the held-out samples so far.
struct Best {
  double held_out = std::numeric_limits<double>::infinity();
  at::Tensor x;
  void look(double loss, const at::Tensor& at_x) {
    if (loss < held_out) held_out = loss, x = at_x.clone();
  }
};

struct Learned {
  at::Tensor x;
  double held_out = 0, error = 0;
  int64_t hvps = 0;
  double bytes = 0;  // peak of a step
};

Learned learn(const InstrumentProblem& problem, std::shared_ptr<const Estimator> estimator, int64_t steps) {
  const AutodiffOracle autodiff(problem);
  const CountedOracle oracle(autodiff);
  DoubleLoopOptions options;
  options.carry_rule_state = true;
  const DoubleLoop loop(oracle, adam(kInnerSteps), std::move(estimator),
                        std::make_shared<OuterAdam>(OuterAdamOptions{.lr = kRate}), options);
  State state = loop.init();
  Best best;
  Learned out;
  for (int64_t t = 1; t <= steps; ++t) {
    const at::Tensor x = state.tensor("x");
    const Record record = loop.step(state, 1);
    out.bytes = std::max(out.bytes, static_cast<double>(record.cost.peak_bytes));
    if (t % kLookEvery == 0) best.look(problem.held_out_loss(state.tensor("y")), x);
  }
  out.x = best.x.defined() ? best.x : state.tensor("x");
  out.held_out = best.held_out;
  out.error = problem.error(out.x);
  out.hvps = oracle.cost().hvps;
  return out;
}

Learned regress_directly(const InstrumentProblem& problem, const Data& data, int64_t steps) {
  const DirectProblem direct(data, problem.f());
  const AutodiffOracle oracle(direct);
  const auto solver = adam(kInnerSteps * kLookEvery);
  const at::Tensor none = at::zeros({0}, data.grid.options());
  InnerStart start{.y = problem.initial_outer()};
  Best best;
  for (int64_t t = 0; t < steps; t += kLookEvery) {
    const InnerSolution solution = solver->solve(oracle, none, 0, start, {});
    start = {solution.y, solution.state, solution.state_steps, start.first_step + solution.steps};
    const at::NoGradGuard no_grad;
    best.look((problem.f().outputs(start.y, data.held_out.treatment) - data.held_out.outcome).square().mean().item<double>(),
              start.y);
  }
  return {.x = best.x, .held_out = best.held_out, .error = problem.error(best.x)};
}

std::shared_ptr<const Estimator> adjoint_network() {
  return std::make_shared<Functional>(
      FunctionalOptions{.adjoint = FunctionalOptions::Adjoint::kNetwork, .adjoint_steps = kInnerSteps, .adjoint_lr = kRate});
}
std::shared_ptr<const Estimator> adjoint_head(double damping = FunctionalOptions{}.damping) {
  return std::make_shared<Functional>(FunctionalOptions{.damping = damping});
}
std::shared_ptr<const Estimator> parametric(int64_t products, double damping) {
  return std::make_shared<Implicit>(std::make_unique<Cg>(CgOptions{.iterations = products, .damping = damping}));
}

/// AID with the damping that has the smallest held-out loss.
Learned learn_by_aid(const InstrumentProblem& problem, const std::vector<double>& dampings, int64_t steps) {
  Learned best;
  best.held_out = std::numeric_limits<double>::infinity();
  for (const double damping : dampings) {
    Learned one = learn(problem, parametric(10, damping), steps);
    if (one.held_out < best.held_out || !best.x.defined()) best = std::move(one);
  }
  return best;
}

at::Tensor truth_at(const at::Tensor& t) { return t.sin() + 0.3 * t; }

Data instrument_data(int64_t n, int64_t seed, at::ScalarType dtype) {
  Draw draw = Stream(static_cast<uint64_t>(seed), "funcid instruments").at(0);
  const auto observe = [&](int64_t count) -> Observed {
    const at::Tensor s = 6 * draw.uniform({count, 2}) - 3, e = draw.normal({count});
    const at::Tensor t = s.select(1, 0) + e + 0.3 * draw.normal({count});
    const at::Tensor outcome = truth_at(t) + 2 * e + 0.3 * draw.normal({count});
    return {s.to(dtype), t.unsqueeze(1).to(dtype), outcome.to(dtype)};
  };
  Data data{observe(n), observe(n), observe(n / 2), {}, {}};
  const at::Tensor grid = at::linspace(-3, 3, 121, at::kDouble);
  data.grid = grid.unsqueeze(1).to(dtype);
  data.truth = truth_at(grid).to(dtype);
  return data;
}

std::vector<double> numbers_of(const at::Tensor& t) {
  const at::Tensor flat = t.to(at::kDouble).flatten().contiguous();
  return {flat.const_data_ptr<double>(), flat.const_data_ptr<double>() + flat.numel()};
}

void learn_by_instruments(StudyRun& run) {
  const int64_t samples = run.setting<int64_t>("samples"), steps = run.setting<int64_t>("steps");
  const std::vector<double> dampings = run.setting<std::vector<double>>("dampings");
  const std::vector<int64_t> seeds = run.seeds();
  Table table{.title = "Mean squared distance from f₀ on [−3, 3]",
              .columns = {{"seed", true},
                          {"direct regression", true},
                          {"adjoint network", true},
                          {"adjoint head", true},
                          {"AID", true},
                          {"ITD, two steps", true}},
              .rows = {}};
  for (size_t i = 0; i < seeds.size(); ++i) {
    run.progress("instruments", 0.6 * static_cast<double>(i) / static_cast<double>(seeds.size()));
    const Data data = instrument_data(samples, seeds[i], at::kFloat);
    const InstrumentProblem problem(data, network({64, 64}), network({64, 64}), seeds[i]);
    const Learned direct = regress_directly(problem, data, steps), by_network = learn(problem, adjoint_network(), steps),
                  by_head = learn(problem, adjoint_head(), steps);
    run.measure("network-beats-direct", std::log10(direct.error / by_network.error));
    run.measure("head-beats-direct", std::log10(direct.error / by_head.error));
    run.measure("no-hessian-products", static_cast<double>(by_network.hvps + by_head.hvps));
    Table::Row row{{Cell(std::to_string(seeds[i]))}};
    for (const Learned* one : {&direct, &by_network, &by_head}) row.cells.push_back(format_fixed(one->error, 3));
    if (run.asks_for("beats-aid")) {
      const Learned aid = learn_by_aid(problem, dampings, steps);
      const Learned itd = learn(problem, std::make_shared<Unrolled>(UnrolledOptions{.steps = 2}), steps);
      run.measure("beats-aid", std::log10(aid.error / by_network.error));
      run.measure("beats-itd", std::log10(itd.error / by_network.error));
      run.measure("memory", by_network.bytes / aid.bytes);
      for (const Learned* one : {&aid, &itd}) row.cells.push_back(format_fixed(one->error, 3));
    } else {
      run.measure("memory", by_network.bytes / learn(problem, parametric(10, dampings.front()), 3).bytes);
    }
    row.cells.resize(table.columns.size(), Cell(""));
    table.rows.push_back(std::move(row));
    if (i > 0) continue;
    const std::vector<double> grid = numbers_of(data.grid);
    run.picture(LineChart{.title = "What is learned of f₀, first seed",
                          .x_label = "treatment",
                          .y_label = "effect",
                          .series = {{"f₀", grid, numbers_of(data.truth)},
                                     {"direct regression", grid, numbers_of(problem.on_grid(direct.x))},
                                     {"FuncID, adjoint network", grid, numbers_of(problem.on_grid(by_network.x))},
                                     {"FuncID, adjoint head", grid, numbers_of(problem.on_grid(by_head.x))}}});
  }
  run.show(std::move(table));
}

// --- Direction of one hypergradient against the damping ---

double smallest_cosine(const std::vector<at::Tensor>& directions) {
  double least = 1;
  for (size_t i = 0; i < directions.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      const double cosine = directions[i].dot(directions[j]).item<double>() /
                            (directions[i].norm().item<double>() * directions[j].norm().item<double>());
      least = std::min(least, cosine);
    }
  }
  return least;
}

at::Tensor direction(const InstrumentProblem& problem, const at::Tensor& x, const InnerSolution& solved,
                     const Estimator& estimator) {
  const AutodiffOracle oracle(problem);
  const auto solver = adam(1);
  InnerSolution solution;
  solution.y = solved.y;
  EstimatorInput input{oracle, *solver, x, solution, {}, {}, {}};
  return estimator.estimate(input).value;
}

struct Steadiness {
  double functional, exact, ten,
      hundred;  // smallest cosines between two dampings; parametric: solved exactly, by so many products
};

Steadiness steadiness_at(const at::Tensor& x, const InstrumentProblem& problem, const std::vector<double>& dampings) {
  const AutodiffOracle oracle(problem);
  const InnerSolution solved = adam(300, false)->solve(oracle, x, 0, {.y = problem.initial_inner(x, 0)}, {});
  std::vector<at::Tensor> functional, exact, ten, hundred;
  for (const double damping : dampings) {
    functional.push_back(direction(problem, x, solved, *adjoint_head(damping)));
    exact.push_back(direction(problem, x, solved, Implicit(std::make_unique<Dense>(DenseOptions{.damping = damping}))));
    ten.push_back(direction(problem, x, solved, *parametric(10, damping)));
    hundred.push_back(direction(problem, x, solved, *parametric(100, damping)));
  }
  return {smallest_cosine(functional), smallest_cosine(exact), smallest_cosine(ten), smallest_cosine(hundred)};
}

void compare_directions(StudyRun& run) {
  const int64_t samples = run.setting<int64_t>("stability_samples"), steps = run.setting<int64_t>("steps");
  const std::vector<double> dampings = run.setting<std::vector<double>>("stability_dampings");
  const std::vector<int64_t> seeds = run.seeds();
  Table table{.title = "Smallest cosine between the hypergradients of two dampings, h over-parametrised",
              .columns = {{"seed", true},
                          {"at", false},
                          {"functional, head", true},
                          {"parametric, exact", true},
                          {"parametric, 10 products", true},
                          {"parametric, 100 products", true}},
              .rows = {}};
  for (size_t i = 0; i < seeds.size(); ++i) {
    run.progress("directions", 0.6 + 0.1 * static_cast<double>(i) / static_cast<double>(seeds.size()));
    const Data data = instrument_data(samples, 100 + seeds[i], at::kDouble);
    const InstrumentProblem problem(data, network({64, 64}), network({256}), seeds[i]);
    const Steadiness start = steadiness_at(problem.initial_outer(), problem, dampings);
    const Steadiness learned = steadiness_at(regress_directly(problem, data, steps).x, problem, dampings);
    run.measure("steady-direction", start.functional);
    run.measure("parametric-direction", start.exact);
    run.measure("steady-direction-at-learned-x", learned.functional);
    run.measure("parametric-direction-at-learned-x", learned.exact);
    for (const auto& [name, one] : {std::pair{"the start", start}, std::pair{"a learned x", learned}}) {
      Table::Row row{{Cell(std::to_string(seeds[i])), Cell(name)}};
      for (const double cosine : {one.functional, one.exact, one.ten, one.hundred}) row.cells.push_back(format_fixed(cosine, 4));
      table.rows.push_back(std::move(row));
    }
  }
  run.show(std::move(table));
}

// --- Images of ellipses, of which the instrument does not tell the y position, that the outcome depends on by another way too
// ---

constexpr int64_t kSide = 16;

/// Ellipses [n, 16·16] with soft edges, from scale, orientation, x and y [n] each, in [0, 1].
at::Tensor render(const at::Tensor& scale, const at::Tensor& orientation, const at::Tensor& x, const at::Tensor& y) {
  const auto of_samples = [](const at::Tensor& t) { return t.view({-1, 1, 1}); };
  const at::Tensor axis = at::linspace(-1, 1, kSide, at::kDouble);
  const at::Tensor dx = axis.view({1, 1, kSide}) - of_samples(x - 0.5), dy = axis.view({1, kSide, 1}) - of_samples(y - 0.5);
  const at::Tensor angle = of_samples(3.141592653589793 * orientation), size = of_samples(0.6 + 0.6 * scale);
  const at::Tensor along = (dx * angle.cos() + dy * angle.sin()) / (0.45 * size);
  const at::Tensor across = (dy * angle.cos() - dx * angle.sin()) / (0.25 * size);
  return at::sigmoid((1 - (along.square() + across.square()).sqrt()) / 0.15).flatten(1);
}

/// The structural function before it is scaled: the mean square of ten fixed projections of the clean image.
at::Tensor energy(const at::Tensor& images) {
  return images.mm(Stream(0, "funcid projections").at(0).uniform({kSide * kSide, 10})).square().mean(1);
}

Data image_data(int64_t n, int64_t seed) {
  Draw draw = Stream(static_cast<uint64_t>(seed), "funcid images").at(0);
  Draw many = Stream(0, "funcid scaling").at(0);
  const at::Tensor of_many =
      energy(render(many.uniform({2000}), many.uniform({2000}), many.uniform({2000}), many.uniform({2000})));
  const at::Tensor mean = of_many.mean(), deviation = of_many.std();
  const auto structural = [&](const at::Tensor& images) { return (energy(images) - mean) / deviation; };
  const auto observe = [&](int64_t count) -> Observed {
    const at::Tensor scale = draw.uniform({count}), orientation = draw.uniform({count}), x = draw.uniform({count}),
                     y = draw.uniform({count});
    const at::Tensor images = render(scale, orientation, x, y);
    const at::Tensor outcome = structural(images) + 2 * std::sqrt(12.0) * (y - 0.5) + 0.5 * draw.normal({count});
    const at::Tensor seen = images + 0.1 * draw.normal({count, kSide * kSide});
    return {at::stack({scale, orientation, x}, 1).to(at::kFloat), seen.to(at::kFloat), outcome.to(at::kFloat)};
  };
  Data data{observe(n), observe(n), observe(n / 2), {}, {}};
  const auto grid = at::meshgrid({at::linspace(0, 1, 3, at::kDouble), at::linspace(0, 1, 4, at::kDouble),
                                  at::linspace(0, 1, 7, at::kDouble), at::linspace(0, 1, 7, at::kDouble)},
                                 "ij");
  const at::Tensor images = render(grid[0].flatten(), grid[1].flatten(), grid[2].flatten(), grid[3].flatten());
  data.grid = images.to(at::kFloat);
  data.truth = structural(images).to(at::kFloat);
  return data;
}

void learn_from_images(StudyRun& run) {
  const int64_t samples = run.setting<int64_t>("image_samples"), steps = run.setting<int64_t>("image_steps");
  const std::vector<int64_t> seeds = run.seeds();
  if (!run.asks_for("images")) return;
  Table table{.title = "Images: mean squared distance from the structural function, whose variance is 1",
              .columns = {{"seed", true}, {"direct regression", true}, {"adjoint network", true}, {"adjoint head", true}},
              .rows = {}};
  for (size_t i = 0; i < seeds.size(); ++i) {
    run.progress("images", 0.7 + 0.3 * static_cast<double>(i) / static_cast<double>(seeds.size()));
    const Data data = image_data(samples, seeds[i]);
    const InstrumentProblem problem(data, network({64}), network({64, 64}), seeds[i]);
    const Learned direct = regress_directly(problem, data, steps), by_network = learn(problem, adjoint_network(), steps),
                  by_head = learn(problem, adjoint_head(), steps);
    run.measure("images", std::log10(direct.error / by_network.error));
    Table::Row row{{Cell(std::to_string(seeds[i]))}};
    for (const Learned* one : {&direct, &by_network, &by_head}) row.cells.push_back(format_fixed(one->error, 3));
    table.rows.push_back(std::move(row));
  }
  run.show(std::move(table));
}

}  // namespace

void study_funcid(StudyRun& run) {
  learn_by_instruments(run);
  compare_directions(run);
  learn_from_images(run);
}

}  // namespace bilevel
