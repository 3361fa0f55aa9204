#include "tasks/registry.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/problem/fingerprint.h"
#include "tasks/supervised.h"

namespace bilevel {

namespace {

constexpr const char* kSupervisedTemplate =
    R"toml(# A supervised task: the inner problem trains a model on [data.inner], the outer problem chooses the hyperparameters by the
# loss on [data.outer]. Run it:   bilevel run CONFIG.toml --out DIR
# Every key but those of [data] may be left out; unknown keys are errors.

[problem]
task  = "supervised"
model = "linear"        # "linear" | "mlp" (hidden = [128], activation = "tanh") | "cnn" (images: channels = [16, 32], kernel = 3, stride = 1)
loss  = "softmax"       # "softmax": classes 0, 1, 2, …   "logistic": classes 0 and 1   "squared": numbers, ½(prediction − y)²
dtype = "float32"       # or "float64"
bias  = true

# What x is: any of these, one after the other in the order of this file. `init` is x itself, a number or a .npy file.
[problem.hyperparameters]
# A ridge of its own for each feature: inner += ½ Σ_j λ_j ‖w_j‖², λ = exp(x).  per = "one" | "feature" | "class" | "layer";
# param = "log" | "identity" (λ = x, with min = 0.0);  bias = true penalises biases too.
l2 = { per = "feature", init = -4.0, param = "log", bias = false }
# Weights that become exactly zero: inner += Σ_j λ_j ‖w_j‖₁, λ = exp(x); needs inner.solver = "prox" or "prox-newton". Options as for l2.
# l1 = { per = "feature", init = -6.0 }
# A weight for each inner sample: inner = (1/n) Σ_i σ(x_i) loss_i.  param = "sigmoid" | "identity" | "softplus"; min, max, or
# constraint = "simplex" | "positive".
# sample_weight = { init = 0.0, param = "sigmoid" }
# A weight for each source of the inner samples; needs data.inner.source.
# source_weight = { init = 0.0, param = "sigmoid" }
# The step size of the inner rule, in place of inner.lr; only estimators that go through the steps can learn it.
# per = "one" | "layer" | "step". Likewise momentum (sgd, rmsprop) and weight_decay.
# step_size = { init = 0.1, param = "identity", min = 0.0 }
# momentum = { init = 0.9, per = "layer", min = 0.0, max = 0.99 }

# What is not learned.
# [problem.fixed]
# l2 = 0.01
# l2_bias = false
# l1 = 0.001
# sample_weight = "weights.npy"

# Paths are relative to this file. Arrays: { x = "x.npy", y = "y.npy", source = "s.npy" } (IDX files too); tables:
# { x = "table.csv", label = "COLUMN", source = "COLUMN" }; builtin = "digits" | "fashion-mnist" (with split = "train" | "test").
# `first` and `count` take a range of the rows. `test` is only reported.
[data]
inner = { builtin = "digits", first = 0, count = 500 }
outer = { builtin = "digits", first = 500, count = 500 }
test  = { builtin = "digits", first = 1000 }

[inner]
rule  = "sgd"           # `bilevel list rules`; or solver = "lbfgs" | "newton-cg" | "closed-form" | "prox" | "prox-newton"
lr    = "auto"          # or a number; "auto" is 1/L by power iteration
steps = 200
batch = 0               # 0: all samples in every step
init  = "zeros"         # "zeros" | "random" | a .npy file
start = "warm"          # the next outer step goes on from here; "cold" starts again from init

[hypergradient]
estimator  = "implicit" # `bilevel list estimators`
solver     = "cg"       # `bilevel list solvers`
iterations = 20

[outer]
rule  = "adam"
lr    = 0.1
steps = 40

[run]
seed = 0
)toml";

Samples samples_of(const Dataset& data, const ModelOptions& model) {
  at::Tensor features = data.features;
  if (model.kind == "cnn" && data.images()) {
    features = features.view({data.size(), data.dimension() / (data.height * data.width), data.height, data.width});
  }
  return {features, data.labels};
}

Task make_supervised(const Config& config, c10::Device device) {
  Section root = config.root();
  SupervisedOptions options;
  options.device = device;
  read(root, options);

  Section data = root.section("data");
  Task task;
  SupervisedData samples;
  std::vector<at::Tensor> read_from_files;
  const auto load = [&](const char* key, Samples& into) {
    Section section = data.section(key);
    DataSpec spec;
    spec.dtype = options.dtype;
    spec.regression = options.loss == "squared";
    read(section, spec);
    const bool first = &into == &samples.inner;
    const Dataset loaded = load_dataset(spec, first ? nullptr : &task.encoding, first ? &task.encoding : nullptr);
    into = samples_of(loaded, options.model);
    read_from_files.insert(read_from_files.end(), {loaded.features, loaded.labels, loaded.sources});
    if (first) {
      samples.sources = loaded.sources;
      samples.source_count = static_cast<int64_t>(loaded.source_names.size());
    }
    task.notes.insert(task.notes.end(), loaded.notes.begin(), loaded.notes.end());
  };
  for (const char* key : {"inner", "outer"}) {
    if (!data.has(key))
      data.fail(key, fmt::format("missing: {} = {{ x = \"x.npy\", y = \"y.npy\" }}, a .csv, or builtin = \"digits\".", key));
  }
  load("inner", samples.inner);
  load("outer", samples.outer);
  if (data.has("test")) load("test", samples.test);
  data.finish();

  if (options.loss == "softmax") options.outputs = task.encoding.classes();
  task.problem = std::make_unique<SupervisedProblem>(std::move(options), std::move(samples));
  // Where x and y begin may be in files too.
  const at::Tensor x = task.problem->initial_outer();
  read_from_files.insert(read_from_files.end(), {x, task.problem->initial_inner(x, 0)});
  task.identity = "data " + fingerprint(read_from_files);
  return task;
}

struct Entry {
  TaskRow row;
  Task (*make)(const Config&, c10::Device);
  const char* text;
};

const std::vector<Entry>& entries() {
  static const std::vector<Entry> entries = {
      {{"supervised",
        "weights of samples and sources, ridge strengths and step size of a classifier or a regression, by validation loss"},
       make_supervised,
       kSupervisedTemplate},
  };
  return entries;
}

std::vector<std::string> names() {
  std::vector<std::string> out;
  for (const TaskRow& row : tasks()) out.push_back(row.name);
  return out;
}

const Entry& entry_of(const std::string& name) {
  for (const Entry& entry : entries()) {
    if (entry.row.name == name) return entry;
  }
  throw Error(fmt::format("The task \"{}\" is not known.{}", name, suggestion(name, names())));
}

}  // namespace

const std::vector<TaskRow>& tasks() {
  static const std::vector<TaskRow> rows = [] {
    std::vector<TaskRow> out;
    for (const Entry& entry : entries()) out.push_back(entry.row);
    return out;
  }();
  return rows;
}

Task make_task(const Config& config, c10::Device device) {
  Section problem = config.root().section("problem");
  std::string name = "supervised";
  problem.read_choice("task", name, names());
  Task task = entry_of(name).make(config, device);
  task.name = name;
  problem.finish();
  return task;
}

std::string task_template(const std::string& name) { return entry_of(name).text; }

}  // namespace bilevel
