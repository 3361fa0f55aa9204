#include "tasks/supervised.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <mutex>

#include "bilevel/core/config.h"
#include "bilevel/core/error.h"
#include "bilevel/problem/inner_constraints.h"
#include "bilevel/problem/likelihood.h"
#include "bilevel/problem/linear_form.h"
#include "bilevel/problem/npy.h"
#include "tasks/gram.h"

namespace bilevel {

namespace {

using Kind = Hyperparameter::Kind;
using Map = Hyperparameter::Map;
using Per = Hyperparameter::Per;

const std::vector<std::string> kPers = {"one", "feature", "class", "layer", "step"};

at::Tensor apply(Map map, const at::Tensor& x) {
  switch (map) {
    case Map::kSigmoid: return x.sigmoid();
    case Map::kSoftplus: return at::log_sigmoid(x.neg()).neg();  // at::softplus is cut to a line beyond its threshold
    case Map::kExp: return x.exp();
    case Map::kIdentity: break;
  }
  return x;
}

bool is_penalty(Kind kind) { return kind == Kind::kL2 || kind == Kind::kL1; }
bool is_of_rule(Kind kind) { return kind == Kind::kStepSize || kind == Kind::kMomentum || kind == Kind::kWeightDecay; }
bool is_weight(Kind kind) { return kind == Kind::kSampleWeight || kind == Kind::kSourceWeight; }

Map map_named(const std::string& name) {
  return name == "sigmoid" ? Map::kSigmoid : name == "softplus" ? Map::kSoftplus : name == "log" ? Map::kExp : Map::kIdentity;
}

void read_constraint(Section& section, Hyperparameter& out) {
  if (section.has("constraint")) {
    std::string name;
    section.read_choice("constraint", name, {"simplex", "positive"});
    for (const char* key : {"min", "max"}) {
      if (section.has(key)) section.fail(key, fmt::format("there is constraint = \"{}\" already; give one of the two.", name));
    }
    out.constraint = name == "simplex" ? Constraint::simplex() : Constraint::positive();
  } else if (section.has("min") || section.has("max")) {
    Constraint box = Constraint::box(-std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity());
    if (section.has("min")) section.read("min", box.lower);
    if (section.has("max")) section.read("max", box.upper);
    if (!(box.lower <= box.upper)) section.fail("min", fmt::format("min = {} is above max = {}.", box.lower, box.upper));
    out.constraint = box;
  }
}

// x of what a rule begins with: step size 0.1, momentum 0.9, weight decay 0.01; else 0.
double initial_value(Kind kind, Map map) {
  if (!is_of_rule(kind)) return 0.0;
  const double value = kind == Kind::kStepSize ? 0.1 : kind == Kind::kMomentum ? 0.9 : 0.01;
  return map == Map::kExp ? std::log(value) : map == Map::kSigmoid ? std::log(value / (1 - value)) : value;
}

Hyperparameter read_hyperparameter(Section& all, const std::string& key) {
  const auto& kinds = Hyperparameter::kinds();
  const auto found = std::find(kinds.begin(), kinds.end(), key);
  if (found == kinds.end()) all.fail(key, fmt::format("this hyperparameter is not known.{}", suggestion(key, kinds)));
  if (!all.is_table(key)) all.fail(key, fmt::format("expected a table, such as {} = {{ init = 0.0 }}.", key));

  Hyperparameter out;
  out.kind = static_cast<Kind>(found - kinds.begin());
  Section section = all.section(key);
  std::string map = is_weight(out.kind) ? "sigmoid" : is_penalty(out.kind) || out.kind == Kind::kWeightDecay ? "log" : "identity";
  section.read_choice("param", map,
                      is_weight(out.kind)           ? std::vector<std::string>{"sigmoid", "identity", "softplus"}
                      : out.kind == Kind::kMomentum ? std::vector<std::string>{"identity", "sigmoid"}
                                                    : std::vector<std::string>{"log", "identity"});
  out.map = map_named(map);
  if (is_penalty(out.kind) || is_of_rule(out.kind)) {
    std::string per = "one";
    section.read_choice("per", per,
                        is_penalty(out.kind) ? std::vector<std::string>{"one", "feature", "class", "layer"}
                                             : std::vector<std::string>{"one", "layer", "step"});
    out.per = static_cast<Per>(std::find(kPers.begin(), kPers.end(), per) - kPers.begin());
    if (is_penalty(out.kind)) section.read("bias", out.bias);
    if (out.per == Per::kStep) section.read("window", out.window);
  }
  read_constraint(section, out);
  if (section.is_text("init")) {
    std::string file;
    section.read_path("init", file);
    out.init = read_npy(file);
  } else if (section.has("init") || out.constraint.kind != Constraint::Kind::kSimplex) {
    double init = initial_value(out.kind, out.map);
    section.read("init", init);
    out.init = at::scalar_tensor(init, at::kDouble);
  }
  section.finish();
  return out;
}

bool learned(const SupervisedOptions& options, Kind kind) {
  return std::any_of(options.hyperparameters.begin(), options.hyperparameters.end(),
                     [&](const Hyperparameter& one) { return one.kind == kind; });
}

void read_fixed(Section& problem, SupervisedOptions& options) {
  const bool l2_learned = learned(options, Kind::kL2);
  if (l2_learned && !problem.has("fixed")) return;
  Section fixed = problem.section("fixed");
  if (l2_learned && fixed.has("l2_bias")) fixed.fail("l2_bias", "l2 is a hyperparameter; write bias = true there instead.");
  for (const std::string& key : Hyperparameter::kinds()) {
    if (!fixed.has(key)) continue;
    if (options.hyperparameters.end() != std::find_if(options.hyperparameters.begin(), options.hyperparameters.end(),
                                                      [&](const Hyperparameter& one) { return one.name() == key; })) {
      fixed.fail(key, fmt::format("{} is a hyperparameter, so it cannot be fixed too; remove one of the two.", key));
    }
    if (key == "step_size") fixed.fail(key, "a fixed step size is written lr, in [inner].");
    if (key == "momentum" || key == "weight_decay") fixed.fail(key, "it belongs to the rule, in [inner].");
    if (key == "source_weight") fixed.fail(key, "fixed weights are given for each sample: sample_weight = \"weights.npy\".");
  }
  if (!l2_learned) {
    fixed.read("l2", options.l2);
    fixed.read("l2_bias", options.l2_bias);
  }
  if (!learned(options, Kind::kL1)) fixed.read("l1", options.l1);
  if (fixed.has("sample_weight")) fixed.read_path("sample_weight", options.sample_weight);
  fixed.finish();
}

// `init` of [inner]; the rest of the section belongs to the inner solver.
void read_start(Section& root, SupervisedOptions& options) {
  Section inner = root.section("inner");
  if (learned(options, Kind::kStepSize) && inner.is_number("lr")) {
    inner.fail("lr", "step_size is a hyperparameter, so lr cannot be fixed too; remove one of the two.");
  }
  if (std::any_of(options.hyperparameters.begin(), options.hyperparameters.end(),
                  [](const Hyperparameter& one) { return one.per == Per::kStep; })) {
    inner.read("steps", options.steps);
  }
  options.init = options.model.kind == "linear" ? "zeros" : "random";
  inner.read("init", options.init);
  if (options.init == "zeros" || options.init == "random") return;
  if (!options.init.ends_with(".npy")) {
    inner.fail("init", fmt::format("expected \"zeros\", \"random\" or a .npy file, got \"{}\".", options.init));
  }
  inner.read_path("init", options.init);
}

// The part's values, from a number or from as many as it has.
at::Tensor initial_part(const Hyperparameter& one, const Part& part, at::ScalarType dtype) {
  const bool simplex = one.constraint.kind == Constraint::Kind::kSimplex;
  if (!one.init.defined()) return at::full({part.size}, simplex ? 1.0 / static_cast<double>(part.size) : 0.0, dtype);
  const at::Tensor given = one.init.reshape({-1}).to(at::kDouble);
  require(one.init.dim() == 0 || given.size(0) == part.size,
          fmt::format("SupervisedProblem: init of {} should be a number or hold {} values, got shape [{}].", part.name, part.size,
                      fmt::join(one.init.sizes(), ", ")));
  require(given.isfinite().all().item<bool>(), fmt::format("SupervisedProblem: init of {} is not finite.", part.name));
  const at::Tensor x = given.expand({part.size}).to(dtype).contiguous();
  const bool inside = simplex ? given.ge(0).all().item<bool>() && std::abs(x.sum(at::kDouble).item<double>() - 1) < 1e-5
                              : given.ge(one.constraint.lower).logical_and(given.le(one.constraint.upper)).all().item<bool>();
  require(inside, fmt::format("SupervisedProblem: init of {} is outside of its constraint ({}).", part.name,
                              simplex ? "simplex: not negative, with sum 1"
                                      : fmt::format("{} … {}", one.constraint.lower, one.constraint.upper)));
  return x;
}

bool one_after_the_other(const at::Tensor& samples) {
  if (samples.unsafeGetTensorImpl()->is_python_dispatch()) return false;  // a tracer's, which has no values
  if (!samples.is_cpu() || samples.scalar_type() != at::kLong || !samples.is_contiguous() || samples.numel() == 0) return false;
  const int64_t* const index = samples.const_data_ptr<int64_t>();
  for (int64_t i = 1; i < samples.numel(); ++i) {
    if (index[i] != index[0] + i) return false;
  }
  return true;
}

// Samples one after the other, as the share of a process or a micro-batch has them, are not copied.
at::Tensor gather(const at::Tensor& values, const Batch& batch, int64_t dim) {
  if (batch.full()) return values;
  const at::Tensor& samples = batch.samples;
  if (!one_after_the_other(samples)) return values.index_select(dim, samples);
  const int64_t first = *samples.const_data_ptr<int64_t>();
  require(first >= 0 && first + samples.numel() <= values.size(dim),
          fmt::format("SupervisedProblem: a batch names the samples {} to {}, and there are 0 to {}.", first,
                      first + samples.numel() - 1, values.size(dim) - 1));
  return values.narrow(dim, first, samples.numel());
}

at::Tensor product(const at::Tensor& a, const at::Tensor& b) { return !a.defined() ? b : !b.defined() ? a : a * b; }

}  // namespace

const std::vector<std::string>& Hyperparameter::kinds() {
  static const std::vector<std::string> names = {"sample_weight", "source_weight", "l2",          "l1",
                                                 "step_size",     "momentum",      "weight_decay"};
  return names;
}

std::string Hyperparameter::name() const { return kinds()[static_cast<size_t>(kind)]; }

std::vector<std::string> SupervisedOptions::violations() const {
  std::vector<std::string> out = model.violations();
  const auto& losses = Loss::names();
  if (std::find(losses.begin(), losses.end(), loss) == losses.end()) {
    out.push_back(fmt::format("loss \"{}\" is not known.{}", loss, suggestion(loss, losses)));
  }
  if (dtype != at::kFloat && dtype != at::kDouble)
    out.push_back(fmt::format("dtype must be float32 or float64, got {}", at::toString(dtype)));
  if (!(l2 >= 0) || !std::isfinite(l2)) out.push_back(fmt::format("l2 must be at least 0, got {}", l2));
  if (!(l1 >= 0) || !std::isfinite(l1)) out.push_back(fmt::format("l1 must be at least 0, got {}", l1));
  if (learned(*this, Kind::kL1) && l1 != 0) out.push_back(fmt::format("l1 is a hyperparameter and fixed at {} too", l1));
  for (size_t i = 0; i < hyperparameters.size(); ++i) {
    const Hyperparameter& one = hyperparameters[i];
    for (size_t j = 0; j < i; ++j) {
      if (hyperparameters[j].kind == one.kind) out.push_back(fmt::format("hyperparameter {} is there twice", one.name()));
    }
    const std::string& per = kPers[static_cast<size_t>(one.per)];
    if (is_penalty(one.kind) && (one.per == Per::kFeature || one.per == Per::kClass) && model.kind != "linear") {
      out.push_back(
          fmt::format("{} per {} needs the model \"linear\", and the model is \"{}\"; \"one\" and \"layer\" fit any model",
                      one.name(), per, model.kind));
    }
    if (is_penalty(one.kind) && one.per == Per::kStep)
      out.push_back(fmt::format("{} cannot change from step to step", one.name()));
    if (is_of_rule(one.kind) && (one.per == Per::kFeature || one.per == Per::kClass)) {
      out.push_back(fmt::format("{} per {} is not offered; \"one\", \"layer\" and \"step\" are", one.name(), per));
    }
    if (one.per == Per::kStep && steps < 1) out.push_back(fmt::format("{} per step needs steps, got {}", one.name(), steps));
    if (one.window < 1) out.push_back(fmt::format("{}: window should be at least 1 step, got {}", one.name(), one.window));
  }
  if (learned(*this, Kind::kL2) && l2 != 0) out.push_back(fmt::format("l2 is a hyperparameter and fixed at {} too", l2));
  if (learned(*this, Kind::kSampleWeight) && !sample_weight.empty())
    out.push_back("sample_weight is a hyperparameter and fixed too");
  return out;
}

void read(Section& root, SupervisedOptions& options) {
  Section problem = root.section("problem");
  read(problem, options.model);
  problem.read_choice("loss", options.loss, Loss::names());
  std::string dtype = options.dtype == at::kDouble ? "float64" : "float32";
  problem.read_choice("dtype", dtype, {"float32", "float64"});
  options.dtype = dtype == "float64" ? at::kDouble : at::kFloat;

  if (!problem.has("hyperparameters")) {
    problem.fail("hyperparameters",
                 fmt::format("nothing to learn on the outside is named; known are {}.", one_of(Hyperparameter::kinds())));
  }
  Section all = problem.section("hyperparameters");
  options.hyperparameters.clear();
  for (const std::string& key : all.keys()) options.hyperparameters.push_back(read_hyperparameter(all, key));
  if (options.hyperparameters.empty()) {
    problem.fail("hyperparameters", fmt::format("it is empty; known are {}.", one_of(Hyperparameter::kinds())));
  }
  read_fixed(problem, options);
  read_start(root, options);
  root.section("run").read("seed", options.seed);
  problem.check(options.violations());
}

SupervisedProblem::~SupervisedProblem() = default;

SupervisedProblem::SupervisedProblem(SupervisedOptions options, SupervisedData data)
    : options_(std::move(options)), loss_(options_.loss) {
  const std::vector<std::string> violations = options_.violations();
  require(violations.empty(), fmt::format("SupervisedProblem: {}.", fmt::join(violations, "; ")));
  int64_t outputs = 1;
  for (const auto& [samples, name] :
       {std::pair(&data.inner, "inner"), std::pair(&data.outer, "outer"), std::pair(&data.test, "test")}) {
    if (samples == &data.test && !samples->features.defined()) continue;
    require(
        samples->features.defined() && samples->features.dim() >= 1 && samples->labels.defined() && samples->labels.dim() >= 1,
        fmt::format("SupervisedProblem: the {} data need features [n, …] and labels [n].", name));
    require(samples->labels.size(0) == samples->features.size(0),
            fmt::format("SupervisedProblem: the {} data have {} samples and {} labels.", name, samples->features.size(0),
                        samples->labels.size(0)));
    require(samples->features.size(0) > 0, fmt::format("SupervisedProblem: the {} data hold no samples.", name));
    outputs = std::max(outputs, loss_.output_size(samples->labels));
  }
  if (options_.outputs == 0) options_.outputs = outputs;
  const std::vector<int64_t> shape = data.inner.features.sizes().slice(1).vec();
  model_ = make_model(options_.model, shape.empty() ? std::vector<int64_t>{1} : shape, options_.outputs);
  inner_ = prepare(data.inner, "inner");
  outer_ = prepare(data.outer, "outer");
  if (data.test.features.defined()) test_ = prepare(data.test, "test");
  take_sources(data);
  take_fixed(data);
  gram_ = data.gram;

  const at::Device device = options_.device;
  std::vector<at::Tensor> initial = {at::empty({0}, options_.dtype)};
  for (size_t i = 0; i < options_.hyperparameters.size(); ++i) {
    const Hyperparameter& one = options_.hyperparameters[i];
    int64_t* const slots[] = {&sample_weight_, &source_weight_, &l2_, &l1_, &step_size_, &momentum_, &weight_decay_};
    *slots[static_cast<size_t>(one.kind)] = static_cast<int64_t>(i);
    outer_layout_.add(one.name(), part_shape(one));
    if (one.kind == Kind::kL1 || (is_of_rule(one.kind) && one.per == Per::kLayer)) {
      groups_[static_cast<int64_t>(i)] = groups(one.per, one.kind != Kind::kL1 || one.bias);
    }
    initial.push_back(initial_part(one, outer_layout_.parts().back(), options_.dtype));
  }
  x0_ = at::cat(initial).to(device);
  if (options_.l1 > 0) groups_[-1] = groups(Per::kOne, false);

  const bool bias = l2_ >= 0 ? options_.hyperparameters[l2_].bias : options_.l2_bias;
  if (options_.model.bias && !bias) {
    std::vector<at::Tensor> penalised;
    for (const Part& part : model_->layout().parts()) {
      penalised.push_back(at::full({part.size}, part.name.ends_with(".bias") ? 0.0 : 1.0, options_.dtype));
    }
    penalised_ = at::cat(penalised).to(device);
  }
  if (options_.init.empty()) options_.init = options_.model.kind == "linear" ? "zeros" : "random";
  if (options_.init.ends_with(".npy")) {
    y0_ = read_npy(options_.init).reshape({-1}).to(device, options_.dtype);
    require(y0_.size(0) == model_->layout().size(), fmt::format("SupervisedProblem: {} should hold {} weights, got {}.",
                                                                options_.init, model_->layout().size(), y0_.size(0)));
    require(y0_.isfinite().all().item<bool>(),
            fmt::format("SupervisedProblem: {} holds a value that is not finite.", options_.init));
  }
  if (options_.model.kind == "linear") offer_linear_forms();
}

std::vector<std::string> SupervisedProblem::outer_parts_of_samples() const {
  return sample_weight_ < 0 ? std::vector<std::string>{} : std::vector<std::string>{"sample_weight"};
}

SupervisedProblem::Prepared SupervisedProblem::prepare(const Samples& samples, const std::string& name) const {
  const std::string what = fmt::format("SupervisedProblem: {} data", name);
  at::Tensor features = samples.features.dim() == 1 ? samples.features.unsqueeze(1) : samples.features;
  if (options_.model.kind != "cnn") features = features.flatten(1);
  features = features.to(options_.device, options_.dtype).contiguous();
  require(features.isfinite().all().item<bool>(), fmt::format("{}: a feature is not finite.", what));
  int64_t expected = model_->layers().front().fan_in;
  if (options_.model.kind == "cnn") expected = inner_.features.defined() ? inner_.features[0].numel() : features[0].numel();
  require(features[0].numel() == expected, fmt::format("{}: expected {} features for each sample, as in the inner data, got {}.",
                                                       what, expected, features[0].numel()));
  const at::Tensor targets = loss_.targets(samples.labels, options_.outputs, options_.dtype, what).to(options_.device);
  return {features, targets, features.size(0)};
}

void SupervisedProblem::take_sources(const SupervisedData& data) {
  if (!learned(options_, Kind::kSourceWeight)) return;
  require(data.sources.defined() && data.sources.dim() == 1 && data.sources.size(0) == inner_.n,
          fmt::format("SupervisedProblem: source_weight needs the source of each of the {} inner samples: data.inner.source.",
                      inner_.n));
  sources_ = data.sources.to(at::kLong);
  require(sources_.min().item<int64_t>() >= 0, "SupervisedProblem: a source is negative; sources are 0…K−1.");
  const int64_t last = sources_.max().item<int64_t>();
  source_count_ = data.source_count > 0 ? data.source_count : last + 1;
  require(last < source_count_ && source_count_ <= inner_.n,
          fmt::format("SupervisedProblem: the largest source is {}; sources are 0…K−1, here with K = {} and {} samples.", last,
                      source_count_, inner_.n));
  const at::Tensor empty = sources_.bincount({}, source_count_).eq(0).nonzero();
  if (empty.size(0) > 0) throw Error(fmt::format("SupervisedProblem: source {} has no samples.", empty[0][0].item<int64_t>()));
  sources_ = sources_.to(options_.device);
}

void SupervisedProblem::take_fixed(const SupervisedData& data) {
  fixed_weights_ = data.sample_weights;
  if (!fixed_weights_.defined() && !options_.sample_weight.empty()) fixed_weights_ = read_npy(options_.sample_weight);
  if (!fixed_weights_.defined()) return;
  require(fixed_weights_.dim() == 1 && fixed_weights_.size(0) == inner_.n,
          fmt::format("SupervisedProblem: fixed sample weights should have shape [{}], got [{}].", inner_.n,
                      fmt::join(fixed_weights_.sizes(), ", ")));
  require(fixed_weights_.isfinite().all().item<bool>(), "SupervisedProblem: a fixed sample weight is not finite.");
  fixed_weights_ = fixed_weights_.to(options_.device, options_.dtype).contiguous();
}

std::vector<int64_t> SupervisedProblem::part_shape(const Hyperparameter& one) const {
  switch (one.kind) {
    case Kind::kSampleWeight: return {inner_.n};
    case Kind::kSourceWeight: return {source_count_};
    default: break;
  }
  switch (one.per) {
    case Per::kOne: return {};
    case Per::kFeature: return {model_->layers().front().fan_in + (one.bias && options_.model.bias ? 1 : 0)};
    case Per::kClass: return {model_->output_size()};
    case Per::kStep: return {(options_.steps + one.window - 1) / one.window};
    case Per::kLayer: break;
  }
  return {static_cast<int64_t>(model_->layers().size())};
}

SupervisedProblem::Groups SupervisedProblem::groups(Per per, bool bias) const {
  std::vector<at::Tensor> index(model_->layout().parts().size()), member(index.size());
  for (size_t l = 0; l < model_->layers().size(); ++l) {
    const Model::Layer& layer = model_->layers()[l];
    for (const int64_t p : {layer.weight, layer.bias}) {
      if (p < 0) continue;
      const Part& part = model_->layout().parts()[static_cast<size_t>(p)];
      const int64_t rows = part.shape.front(), columns = part.size / rows;
      at::Tensor of = at::full({rows, columns}, per == Per::kLayer ? static_cast<int64_t>(l) : 0, at::kLong);
      if (per == Per::kClass) of = at::arange(rows).unsqueeze(1).expand({rows, columns});
      if (per == Per::kFeature) {
        // The biases come after the features.
        of = p == layer.bias ? at::full({rows, 1}, layer.fan_in, at::kLong) : at::arange(columns).expand({rows, columns});
      }
      const bool counts = bias || p != layer.bias;
      index[static_cast<size_t>(p)] = counts ? of.reshape({-1}) : at::zeros({part.size}, at::kLong);
      member[static_cast<size_t>(p)] = at::full({part.size}, counts ? 1.0 : 0.0, options_.dtype);
    }
  }
  Groups out{at::cat(index).to(options_.device), {}};
  if (options_.model.bias && !bias) out.member = at::cat(member).to(options_.device);
  return out;
}

std::vector<at::Tensor> SupervisedProblem::parts_of(const at::Tensor& x) const {
  return outer_layout_.parts().empty() ? std::vector<at::Tensor>{} : outer_layout_.split(x);
}

at::Tensor SupervisedProblem::logits(const Prepared& prepared, const at::Tensor& y, const Batch& batch) const {
  return model_->outputs(y, gather(prepared.features, batch, 0));
}

at::Tensor SupervisedProblem::losses(const Prepared& prepared, const at::Tensor& z, const Batch& batch) const {
  return loss_.losses(z, gather(prepared.targets, batch, 1));
}

// w_i = σ(x_i) · σ(x_source(i)) · fixed_i; samples of the batch are taken before the maps, for they are few.
at::Tensor SupervisedProblem::weights(const std::vector<at::Tensor>& parts, const Batch& batch) const {
  at::Tensor w;
  if (fixed_weights_.defined()) w = gather(fixed_weights_, batch, 0);
  if (sample_weight_ >= 0)
    w = product(w, apply(options_.hyperparameters[sample_weight_].map, gather(parts[sample_weight_], batch, 0)));
  if (source_weight_ >= 0) {
    const at::Tensor of_sources = apply(options_.hyperparameters[source_weight_].map, parts[source_weight_]);
    w = product(w, of_sources.index_select(0, gather(sources_, batch, 0)));
  }
  return w;
}

// ‖y_j‖² of each group j of weights that has a strength of its own, in the shape of that part of x.
at::Tensor SupervisedProblem::energies(const Hyperparameter& l2, const at::Tensor& y) const {
  if (l2.per == Per::kOne) return penalised_.defined() ? (y * penalised_).dot(y) : y.dot(y);
  const std::vector<at::Tensor> parts = model_->layout().split(y);
  if (l2.per == Per::kLayer) {
    std::vector<at::Tensor> sums;
    for (const Model::Layer& layer : model_->layers()) {
      const at::Tensor sum = parts[layer.weight].square().sum();
      sums.push_back(l2.bias && layer.bias >= 0 ? sum + parts[layer.bias].square().sum() : sum);
    }
    return at::stack(sums);
  }
  const Model::Layer& layer = model_->layers().front();
  const bool bias = l2.bias && layer.bias >= 0;
  if (l2.per == Per::kClass) {
    const at::Tensor sums = parts[layer.weight].square().sum(1);
    return bias ? sums + parts[layer.bias].square() : sums;
  }
  const at::Tensor sums = parts[layer.weight].square().sum(0);
  return bias ? at::cat({sums, parts[layer.bias].square().sum().unsqueeze(0)}) : sums;
}

at::Tensor SupervisedProblem::regulariser(const std::vector<at::Tensor>& parts, const at::Tensor& y) const {
  if (l2_ >= 0) {
    const Hyperparameter& one = options_.hyperparameters[l2_];
    const at::Tensor lambda = apply(one.map, parts[l2_]), E = energies(one, y);
    return (lambda.dim() == 0 ? lambda * E : lambda.dot(E)).mul(0.5);
  }
  if (options_.l2 == 0) return {};
  return (penalised_.defined() ? (y * penalised_).dot(y) : y.dot(y)).mul(0.5 * options_.l2);
}

// λ of each weight: what `regulariser` sums up by groups.
SpreadMap SupervisedProblem::strengths() const {
  if (l2_ < 0) {
    const at::Tensor one = at::full({1}, options_.l2, inner_.features.options());
    return {.size = 0, .factor = penalised_.defined() ? penalised_ * one : one};
  }
  const Hyperparameter& one = options_.hyperparameters[l2_];
  SpreadMap map = map_of(l2_);
  if (one.per == Per::kOne || one.per == Per::kLayer) {  // a linear model has one layer
    map.factor = penalised_;
  } else {
    const Groups of = groups(one.per, one.bias);
    map.index = of.index;
    map.factor = of.member;
  }
  return map;
}

SpreadMap SupervisedProblem::map_of(int64_t part) const {
  SpreadMap map;
  map.first = outer_layout_.parts()[static_cast<size_t>(part)].offset;
  map.size = outer_layout_.parts()[static_cast<size_t>(part)].size;
  switch (options_.hyperparameters[part].map) {
    case Map::kSigmoid: map.phi = SpreadMap::Phi::kSigmoid; break;
    case Map::kSoftplus: map.phi = SpreadMap::Phi::kSoftplus; break;
    case Map::kExp: map.phi = SpreadMap::Phi::kExp; break;
    case Map::kIdentity: map.phi = SpreadMap::Phi::kIdentity; break;
  }
  return map;
}

// What is added to a loss below must be added here too, or the native oracle differentiates another loss.
void SupervisedProblem::offer_linear_forms() {
  LinearForm form;
  form.link = LinearForm::link_of(loss_);
  form.outputs = options_.outputs;
  form.bias = options_.model.bias;
  form.features = outer_.features;
  form.targets = outer_.targets;
  outer_form_ = std::make_unique<LinearForm>(form);
  form.features = inner_.features;
  form.targets = inner_.targets;
  if (fixed_weights_.defined()) form.sample_weight_maps.push_back({.size = 0, .factor = fixed_weights_});
  if (sample_weight_ >= 0) form.sample_weight_maps.push_back(map_of(sample_weight_));
  if (source_weight_ >= 0) {
    form.sample_weight_maps.push_back(map_of(source_weight_));
    form.sample_weight_maps.back().index = sources_;
  }
  if (l2_ >= 0 || options_.l2 != 0) form.ridge_map = strengths();
  inner_form_ = std::make_unique<LinearForm>(std::move(form));
}

at::Tensor SupervisedProblem::inner_outputs(const at::Tensor& y, const Batch& batch) const { return logits(inner_, y, batch); }

at::Tensor SupervisedProblem::inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                                    const Batch& batch) const {
  const std::vector<at::Tensor> parts = parts_of(x);
  const at::Tensor l = losses(inner_, outputs, batch), w = weights(parts, batch), R = regulariser(parts, y);
  const at::Tensor mean = w.defined() ? l.dot(w).div(static_cast<double>(l.size(0))) : l.mean();
  return R.defined() ? mean + R : mean;
}

at::Tensor SupervisedProblem::inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return inner_loss_of_outputs(x, y, inner_outputs(y, batch), batch);
}

at::Tensor SupervisedProblem::outer_outputs(const at::Tensor& y, const Batch& batch) const { return logits(outer_, y, batch); }

at::Tensor SupervisedProblem::outer_loss_of_outputs(const at::Tensor&, const at::Tensor&, const at::Tensor& outputs,
                                                    const Batch& batch) const {
  return losses(outer_, outputs, batch).mean();
}

std::optional<Problem::OutputLayer> SupervisedProblem::output_layer() const {
  const Model::Layer& last = model_->layers().back();
  const auto name = [&](int64_t part) {
    return part < 0 ? std::string() : inner_layout().parts()[static_cast<size_t>(part)].name;
  };
  return OutputLayer{name(last.weight), name(last.bias)};
}

at::Tensor SupervisedProblem::inner_features(const at::Tensor& y, const Batch& batch) const {
  return model_->features(y, gather(inner_.features, batch, 0));
}

at::Tensor SupervisedProblem::outer_features(const at::Tensor& y, const Batch& batch) const {
  return model_->features(y, gather(outer_.features, batch, 0));
}

at::Tensor SupervisedProblem::outer_sample_losses(const at::Tensor&, const at::Tensor& y, const Batch& batch) const {
  return losses(outer_, logits(outer_, y, batch), batch);
}

at::Tensor SupervisedProblem::outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return outer_sample_losses(x, y, batch).mean();
}

at::Tensor SupervisedProblem::initial_inner(const at::Tensor&, int64_t slice) const {
  if (y0_.defined()) return y0_.clone();
  const Stream stream(static_cast<uint64_t>(options_.seed), "initial inner weights");
  return model_->initial(options_.init, stream.at(slice), options_.dtype).to(options_.device);
}

namespace {

// The value of each element of y.
at::Tensor spread(const at::Tensor& values, const at::Tensor& index) { return values.reshape({-1}).index_select(0, index); }

}  // namespace

Problem::RuleHyperparameters SupervisedProblem::rule_hyperparameters(const at::Tensor& x, int64_t t) const {
  const std::vector<at::Tensor> parts = parts_of(x);
  RuleHyperparameters h;
  for (const auto& [name, i] :
       {std::pair("lr", step_size_), std::pair("momentum", momentum_), std::pair("weight_decay", weight_decay_)}) {
    if (i < 0) continue;
    const Hyperparameter& one = options_.hyperparameters[i];
    at::Tensor value = apply(one.map, parts[i]);
    if (one.per == Per::kStep) value = value.select(0, std::min(t, options_.steps - 1) / one.window);
    if (one.per == Per::kLayer) value = spread(value, groups_.at(i).index);
    h.emplace_back(name, value);
  }
  return h;
}

InnerConstraints SupervisedProblem::inner_constraints(const at::Tensor& x) const {
  if (!has_inner_constraints()) return {};
  const Groups& of = groups_.at(l1_);
  const at::Tensor lambda =
      l1_ < 0 ? at::full({1}, options_.l1, x0_.options()) : apply(options_.hyperparameters[l1_].map, parts_of(x)[l1_]);
  InnerConstraints constraints;
  constraints.l1 = product(of.member, spread(lambda, of.index));
  return constraints;
}

Likelihood SupervisedProblem::inner_likelihood(const at::Tensor& x, const Batch& batch) const {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> parts = parts_of(x);
  const at::Tensor w = weights(parts, batch), t = gather(inner_.targets, batch, 1);
  at::Tensor ridge = at::full({inner_layout().size()}, options_.l2, x0_.options());
  if (l2_ >= 0) {
    const Hyperparameter& one = options_.hyperparameters[static_cast<size_t>(l2_)];
    const Groups of = groups(one.per, one.bias);
    ridge = product(of.member, spread(apply(one.map, parts[static_cast<size_t>(l2_)]), of.index));
  } else if (penalised_.defined()) {
    ridge = ridge * penalised_;
  }
  const double n = static_cast<double>(t.size(1));
  return {loss_.kind(), options_.outputs, t, w.defined() ? w / n : at::full({t.size(1)}, 1 / n, x0_.options()), ridge};
}

double SupervisedProblem::inner_strong_convexity(const at::Tensor& x) const {
  // A bias without a ridge has the curvature of the data alone, which may be any.
  if (options_.model.kind != "linear" || penalised_.defined()) return 0;
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> parts = parts_of(x);
  const at::Tensor w = weights(parts, {});
  if (w.defined() && w.min().item<double>() < 0) return 0;
  const double least =
      l2_ >= 0
          ? apply(options_.hyperparameters[static_cast<size_t>(l2_)].map, parts[static_cast<size_t>(l2_)]).min().item<double>()
          : options_.l2;
  return std::max(0.0, least);
}

Problem::Preconditioner SupervisedProblem::inner_preconditioner(const at::Tensor& x) const {
  if (options_.model.kind != "linear") return {};
  const at::NoGradGuard no_grad;
  static std::mutex mutex;  // members of a population ask at the same time
  const std::lock_guard lock(mutex);
  if (!gram_) gram_ = std::make_shared<Gram>(inner_.features, options_.model.bias);
  const std::vector<at::Tensor> parts = parts_of(x);
  const at::Tensor w = weights(parts, {});
  double ridge = options_.l2;
  if (l2_ >= 0) ridge = apply(options_.hyperparameters[l2_].map, parts[l2_]).mean().item<double>();
  const double at_even_odds = even_odds_curvature(loss_, options_.outputs);
  const double weight = w.defined() ? w.mean().item<double>() : 1.0;
  return gram_->inverse(options_.outputs, std::max(at_even_odds * weight, 1e-12), ridge);
}

std::vector<Constraint> SupervisedProblem::outer_constraints() const {
  std::vector<Constraint> out;
  bool any = false;
  for (const Hyperparameter& one : options_.hyperparameters) {
    out.push_back(one.constraint);
    any = any || one.constraint.kind != Constraint::Kind::kNone;
  }
  return any ? out : std::vector<Constraint>{};
}

std::map<std::string, double> SupervisedProblem::metrics(const at::Tensor&, const at::Tensor& y) const {
  const at::NoGradGuard no_grad;
  std::map<std::string, double> out;
  out["outer_" + loss_.score_name()] = loss_.score(logits(outer_, y, {}), outer_.targets);
  if (test_.n > 0) {
    const at::Tensor z = logits(test_, y, {});
    out["test_loss"] = loss_.losses(z, test_.targets).mean().item<double>();
    out["test_" + loss_.score_name()] = loss_.score(z, test_.targets);
  }
  return out;
}

at::Tensor SupervisedProblem::values_of(const at::Tensor& x) const {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> parts = parts_of(x);
  std::vector<at::Tensor> values = {x.narrow(0, 0, 0)};
  for (size_t i = 0; i < parts.size(); ++i) values.push_back(apply(options_.hyperparameters[i].map, parts[i]).reshape({-1}));
  return at::cat(values);
}

at::Tensor SupervisedProblem::inner_losses(const at::Tensor& y) const { return loss_.losses(inner_logits(y), inner_.targets); }

at::Tensor SupervisedProblem::inner_logits(const at::Tensor& y) const {
  const at::NoGradGuard no_grad;
  return logits(inner_, y, {});
}

at::Tensor SupervisedProblem::outer_logits(const at::Tensor& y) const {
  const at::NoGradGuard no_grad;
  return logits(outer_, y, {});
}

}  // namespace bilevel
