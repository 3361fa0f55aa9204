#include "tasks/examine.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "bilevel/algorithm/hpm.h"
#include "bilevel/algorithm/single_loop.h"
#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/npy.h"
#include "bilevel/report/png.h"
#include "tasks/job.h"
#include "tasks/reweight_job.h"
#include "tasks/supervised.h"
#include "tasks/trust_learning.h"

namespace bilevel {
namespace {

namespace fs = std::filesystem;

/// True for the job whose problem is examined in its place, false for a run.
bool describes_trust(const Config& config, const char* command) {
  const std::string job = job_of(config);
  require(
      job != "tune",
      fmt::format("`bilevel {}` examines one bilevel problem, and task = \"tune\" is a job of several stages. A configuration of "
                  "`bilevel new supervised` with l2 describes the problem inside it.",
                  command));
  return job == "reweight";
}

int64_t steps_of(const InnerSolver& solver) {
  const auto* rule = dynamic_cast<const RuleSolver*>(&solver);
  return rule ? rule->options().steps : 0;
}

/// The configuration as it stands, in which nothing is shared with `config`.
Config copy_of(const Experiment& experiment, const std::vector<std::string>& sets) {
  Config copy = Config::parse(experiment.text(), "the configuration");
  for (const std::string& set : sets) copy.set(set);
  return copy;
}

/// [hypergradient] as the user wrote it, with its values as the complete configuration has them.
EstimatorSettings configured(const std::vector<std::string>& keys, const std::string& complete) {
  EstimatorSettings settings;
  const size_t begin = complete.find("[hypergradient]\n");
  if (begin == std::string::npos) return settings;
  const size_t end = std::min(complete.find("\n[", begin), complete.size());
  std::vector<std::pair<std::string, std::string>> lines;
  for (size_t at = complete.find('\n', begin) + 1; at < end;) {
    const size_t stop = std::min(complete.find('\n', at), end);
    const std::string line = complete.substr(at, stop - at);
    if (const size_t equals = line.find(" = "); equals != std::string::npos) {
      std::string key = line.substr(0, equals);
      key.erase(key.find_last_not_of(' ') + 1);
      lines.emplace_back(std::move(key), line.substr(equals + 3));
    }
    at = stop + 1;
  }
  const auto wanted = [&](const std::string& key) {
    return key == "estimator" || key == "solver" || std::find(keys.begin(), keys.end(), key) != keys.end();
  };
  for (const char* first : {"estimator", "solver"}) {
    for (const auto& line : lines) {
      if (line.first == first) settings.push_back(line);
    }
  }
  for (const auto& line : lines) {
    if (line.first != "estimator" && line.first != "solver" && wanted(line.first)) settings.push_back(line);
  }
  return settings;
}

bool has_dtype(const Experiment& experiment) {
  return Config::parse(experiment.text(), "").root().section("problem").has("dtype");
}

/// A bilevel problem, the loop that solves it and where it begins, whichever kind of configuration describes them.
struct Setting {
  std::shared_ptr<const void> owner;
  const Oracle* oracle = nullptr;
  const DoubleLoop* loop = nullptr;
  State start = {};
  bool started = false;  // the start has been solved for already, and is where its inner solve begins
  EstimatorSettings configured = {};
  bool configurable = true;
};

/// The problem inside a reweighting job, as its first seed has it.
struct TrustSetting {
  explicit TrustSetting(Config config) : job(std::move(config)) {
    require(
        job.has_trusted(),
        "This configuration has no trusted samples, so there is no bilevel problem yet. `bilevel reweight` says which to label.");
    data = trust_data(job.data(job.seed()), job.options());
  }
  ReweightJob job;
  TrustData data;
};

/// After `after` outer steps; `precise` is the same problem in double, without an oracle where `setting` is in double itself.
Diagnosis examine(const Setting& setting, const Setting& precise, int64_t after, const DoctorOptions& options) {
  const DoubleLoop& loop = *setting.loop;
  State state = setting.start;
  if (after > 0) {
    if (options.progress) options.progress(fmt::format("{} outer steps", after), 0.0);
    loop.step(state, after);
  }
  DoctorSubject subject{*setting.oracle, loop.solver(), state.tensor("x"), {}};
  if (setting.started || (after > 0 && loop.options().start == Start::kWarm)) subject.y = state.tensor("y");
  subject.inner_steps = steps_of(loop.solver());
  subject.seed = loop.options().seed;
  subject.configured = setting.configured;
  subject.configurable = setting.configurable;
  if (precise.oracle != nullptr) {
    subject.precise = precise.oracle;
    subject.precise_solver = &precise.loop->solver();
  }
  return diagnose(subject, options);
}

Diagnosis examine_trust(Config config, int64_t after, const DoctorOptions& options) {
  const TrustSetting trust(std::move(config));
  const auto setting_of = [&](const TrustData& data) {
    const auto learning = std::make_shared<const TrustLearning>(data, trust.job.options());
    return Setting{.owner = learning,
                   .oracle = &learning->oracle(),
                   .loop = &learning->algorithm(),
                   .start = learning->start(),
                   .started = true,
                   .configured = learning->estimator(),
                   .configurable = false};
  };
  return examine(setting_of(trust.data), setting_of(in_double(trust.data)), after, options);
}

Diagnosis examine_experiment(Config config, int64_t after, const DoctorOptions& options, const TaskMaker& make) {
  Section root = config.root();
  const std::vector<std::string> keys =
      root.has("hypergradient") ? root.section("hypergradient").keys() : std::vector<std::string>{};
  const auto setting_of = [](const std::shared_ptr<const Experiment>& experiment) {
    return Setting{.owner = experiment,
                   .oracle = &experiment->oracle(),
                   .loop = &experiment->double_loop("`bilevel doctor`"),
                   .start = experiment->algorithm().init()};
  };
  const auto experiment = std::make_shared<const Experiment>(std::move(config), make);
  Setting setting = setting_of(experiment), precise;
  setting.configured = configured(keys, experiment->text());
  if (setting.start.tensor("x").scalar_type() != at::kDouble) {
    require(has_dtype(*experiment),
            "`bilevel doctor` needs the problem in double for its reference, and this task has no dtype.");
    precise = setting_of(std::make_shared<const Experiment>(copy_of(*experiment, {"problem.dtype=\"float64\""}), make));
  }
  return examine(setting, precise, after, options);
}

}  // namespace

Diagnosis examine(Config config, int64_t after, const DoctorOptions& options, const TaskMaker& make) {
  require(after >= 0, fmt::format("after = {} is negative; 0 or more outer steps would be right.", after));
  return describes_trust(config, "doctor") ? examine_trust(std::move(config), after, options)
                                           : examine_experiment(std::move(config), after, options, make);
}

namespace {

/// The learning of trust; nothing of it can be changed by the planner.
PlanMaker trust_plan_maker(Config config) {
  return [config = std::move(config)](const std::vector<std::string>&) {
    const auto trust = std::make_shared<const TrustSetting>(config);
    const auto learning = std::make_shared<const TrustLearning>(trust->data, trust->job.options());
    PlanSubject subject;
    subject.algorithm = &learning->algorithm();
    subject.steps = trust_steps(trust->job.options());
    subject.remark =
        "These are the figures of learning trust, for one seed; it ends earlier where the hypergradient is mostly noise. The "
        "fits "
        "of the job's table come on top.";
    subject.owner = std::make_shared<const std::pair<decltype(trust), decltype(learning)>>(trust, learning);
    return subject;
  };
}

}  // namespace

PlanMaker plan_maker(Config config, const TaskMaker& make) {
  if (describes_trust(config, "plan")) return trust_plan_maker(std::move(config));
  // The first run is made from the configuration itself, the others from its complete text.
  auto complete = std::make_shared<std::string>();
  return [config = std::move(config), complete, make](const std::vector<std::string>& sets) {
    Config own = complete->empty() ? config : Config::parse(*complete, "the configuration");
    for (const std::string& set : sets) own.set(set);
    const auto experiment = std::make_shared<const Experiment>(std::move(own), make);
    if (complete->empty()) *complete = experiment->text();
    PlanSubject subject;
    subject.algorithm = &experiment->algorithm();
    subject.steps = experiment->driver_options().steps;
    int64_t batch = 0;
    const auto* population = dynamic_cast<const Hpm*>(subject.algorithm);
    if (const auto* loop = population ? &population->member() : dynamic_cast<const DoubleLoop*>(subject.algorithm)) {
      for (const int64_t period : {loop->options().bound_every, loop->options().check_every}) {
        if (period > 0) subject.periods.push_back(period);
      }
      subject.inner_steps = steps_of(loop->solver());
      const auto* rule = dynamic_cast<const RuleSolver*>(&loop->solver());
      batch = rule ? rule->options().batch : 0;
      subject.keeps_trajectory = loop->estimator().trajectory().keep;
    } else if (const auto* single = dynamic_cast<const SingleLoop*>(subject.algorithm)) {
      batch = single->options().batch;
    }
    subject.samples = batch > 0 ? batch : experiment->problem().inner_samples();
    subject.owner = experiment;
    return subject;
  };
}

namespace {

/// The point after `step` updates, by doing again what was not kept.
RunPoint replay(const Experiment& experiment, State state, int64_t step, const ProgressOptions& options) {
  DriverOptions driver = experiment.driver_options();
  driver.steps = step;
  Progress progress(options, step, state.integer("step"));
  Watch watch;
  watch.record = [&](const Record& record, const std::vector<RollBack>&) {
    progress.update(record);
    return Signal::kContinue;
  };
  const RunResult result = Driver(experiment.algorithm(), driver).run(std::move(state), watch);
  require(result.steps == step, fmt::format("The run does not come to step {} again: {}", step, result.message));
  return {result.state.tensor("x"), result.state.tensor("y"), step};
}

RunPoint point_of(const std::string& directory, const std::optional<int64_t>& wanted, const ProgressOptions& progress,
                  const TaskMaker& make) {
  const fs::path path(directory);
  const auto summary = fs::exists(path / "summary.json")
                           ? nlohmann::json::parse(read_file((path / "summary.json").string()), nullptr, false)
                           : nlohmann::json();
  const bool finished = summary.is_object() && fs::exists(path / "x.npy") && fs::exists(path / "y.npy");
  const int64_t last = finished ? summary.value("steps", int64_t{0}) : -1;
  if (finished && wanted.value_or(last) == last) {
    return {read_npy((path / "x.npy").string()), read_npy((path / "y.npy").string()), last};
  }
  const Experiment experiment(Config::load((path / "config.toml").string()), make);
  const int64_t most = finished ? last : experiment.driver_options().steps;
  require(!wanted || (*wanted >= 0 && *wanted <= most),
          fmt::format("--step {} is not in this run; it has the steps 0 to {}.", wanted.value_or(0), most));
  State state = experiment.algorithm().init();
  if (fs::exists(path / "checkpoint")) {
    State saved = load_state((path / "checkpoint").string());
    const int64_t at_step = saved.integer("step");
    if (!wanted || at_step <= *wanted) return replay(experiment, std::move(saved), wanted.value_or(at_step), progress);
  }
  require(wanted.has_value(),
          fmt::format("The run in {} has not come to its end and left no checkpoint; --step says which point to look at.",
                      directory));
  return replay(experiment, std::move(state), *wanted, progress);
}

/// Labels, predictions and pictures of the samples, where there are such.
void describe_samples(Explanation& explanation, const Problem& any, const Encoding& encoding, const at::Tensor& y) {
  const auto* problem = dynamic_cast<const SupervisedProblem*>(&any);
  if (problem == nullptr || explanation.samples.empty()) return;
  const at::NoGradGuard no_grad;
  const Loss& loss = problem->loss();
  const at::Tensor logits = problem->outer_logits(y);
  const at::Tensor& targets = problem->outer_targets();
  const at::Tensor predicted = loss.classifies() ? loss.labels(logits) : at::Tensor{};
  const auto name_of = [&](int64_t label) {
    const auto& names = encoding.class_names;
    return label >= 0 && label < static_cast<int64_t>(names.size()) ? names[static_cast<size_t>(label)] : std::to_string(label);
  };
  const int64_t pixels = encoding.height * encoding.width;
  for (Explanation::Sample& sample : explanation.samples) {
    const at::Tensor target = targets.select(-1, sample.index).flatten();
    if (loss.classifies()) {
      const auto label = target[0].item<double>();
      sample.label = name_of(loss.kind() == Loss::Kind::kLogistic ? label > 0 : static_cast<int64_t>(label));
      sample.predicted = name_of(predicted[sample.index].item<int64_t>());
    } else if (target.numel() == 1) {
      sample.label = fmt::format("{:.4g}", target[0].item<double>());
      sample.predicted = fmt::format("{:.4g}", logits.select(-1, sample.index).flatten()[0].item<double>());
    }
    if (pixels == 0) continue;
    const at::Tensor features = problem->outer_features()[sample.index].flatten();
    const int64_t channels = features.numel() / pixels;
    if (features.numel() != channels * pixels || (channels != 1 && channels != 3)) continue;
    sample.png = encode_png(features.view({channels, encoding.height, encoding.width}));
  }
}

/// Trust as a finished job has learned it, first seed. The directory holds the recommended model, which serves as the start of
/// the inner solve at x, in double.
Explanation explain_trust(const ExplainRequest& request, Config config) {
  const fs::path path(request.directory);
  require(fs::exists(path / "x.npy") && fs::exists(path / "y.npy"), fmt::format("{} holds no finished job.", request.directory));
  const at::Tensor x = read_npy((path / "x.npy").string()).to(at::kDouble);
  const TrustSetting trust(std::move(config));
  require(trust.job.options().model.kind == "linear",
          "`bilevel explain` takes reweighting jobs of a linear model apart: a network is trained on by each step of trust, and "
          "the job keeps "
          "no solution at the last one. A run of `bilevel new supervised` with source_weight keeps it.");
  const TrustLearning learning(in_double(trust.data), trust.job.options());
  const Oracle& oracle = learning.oracle();
  const InnerSolver& solver = learning.algorithm().solver();
  const at::Tensor start = oracle.problem().initial_outer();
  require(x.sizes() == start.sizes(),
          fmt::format("The job's x has {} elements and its problem's {}; have the data changed?", x.numel(), start.numel()));
  const at::Tensor y = solver.solve(oracle, x, 0, {.y = read_npy((path / "y.npy").string()).to(at::kDouble)}, {}).y;
  const int64_t index = element_index(oracle.problem().outer_layout(), request.hyperparameter);
  Explanation explanation = explain(oracle, solver, x, y, index, request.options);
  explanation.step = nlohmann::json::parse(read_file((path / "summary.json").string())).value("steps", int64_t{0});
  require(request.step.value_or(explanation.step) == explanation.step,
          fmt::format("--step {}: a reweighting job keeps its last point alone, step {}.", *request.step, explanation.step));
  explanation.start = start[index].item<double>();
  describe_samples(explanation, oracle.problem(), trust.job.encoding(), y);
  return explanation;
}

}  // namespace

Explanation explain_run(const ExplainRequest& request, const TaskMaker& make) {
  const std::string config_file = (fs::path(request.directory) / "config.toml").string();
  require(fs::exists(config_file), fmt::format("{} holds no run: there is no config.toml in it.", request.directory));
  if (describes_trust(Config::load(config_file), "explain")) return explain_trust(request, Config::load(config_file));
  const RunPoint point = point_of(request.directory, request.step, request.progress, make);
  return explain_point(Config::load(config_file), point, request.hyperparameter, request.options, make);
}

Explanation explain_point(Config config, const RunPoint& point, const std::string& hyperparameter, const ExplainOptions& options,
                          const TaskMaker& make) {
  if (config.root().section("problem").has("dtype")) config.set("problem.dtype=\"float64\"");
  const Experiment experiment(std::move(config), make);
  const Problem& problem = experiment.problem();
  const at::Tensor start = problem.initial_outer();
  require(
      point.x.sizes() == start.sizes(),
      fmt::format("The run's x has {} elements and the problem's {}; have the data changed?", point.x.numel(), start.numel()));
  const auto dtype = start.scalar_type();
  const int64_t index = element_index(problem.outer_layout(), hyperparameter);
  const at::Tensor y = point.y.to(dtype);
  Explanation explanation =
      explain(experiment.oracle(), experiment.double_loop("`bilevel explain`").solver(), point.x.to(dtype), y, index, options);
  explanation.step = point.step;
  explanation.start = start[index].item<double>();
  if (y.dim() == 1) describe_samples(explanation, problem, experiment.task().encoding, y);
  return explanation;
}

}  // namespace bilevel
