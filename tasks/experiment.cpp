#include "tasks/experiment.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "bilevel/algorithm/registry.h"
#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/oracle/choice.h"
#include "bilevel/oracle/finite_difference.h"
#include "bilevel/oracle/micro_batch.h"
#include "bilevel/oracle/native.h"
#include "bilevel/problem/fingerprint.h"
#include "bilevel/problem/npy.h"

namespace bilevel {
namespace {

namespace fs = std::filesystem;

template <class Rows>
std::vector<std::string> names_of(const Rows& rows) {
  std::vector<std::string> names;
  for (const auto& row : rows) names.push_back(row.name);
  return names;
}

struct RunSection {
  int64_t seed = 0;
  int64_t threads = at::get_num_threads();  // written down: another number gives other bits
  std::string device = "cpu";
  std::string oracle = "auto";
  int64_t micro_batch = 0;  // samples that are differentiated at once; 0: all of a batch
  std::string algorithm = "double-loop";
};

void read(Section& run, RunSection& options) {
  run.read("seed", options.seed);
  if (options.seed < 0) run.fail("seed", fmt::format("{} is negative; any whole number from 0 on would do.", options.seed));
  run.read("threads", options.threads);
  if (options.threads < 1) run.fail("threads", fmt::format("{} threads cannot work; 1 or more would be right.", options.threads));
  run.read_choice("device", options.device, {"cpu", "cuda"});
  if (options.device == "cuda" && !at::hasCUDA()) run.fail("device", "this LibTorch sees no CUDA device; use \"cpu\".");
  run.read_choice("oracle", options.oracle, oracle_names());
  run.read("micro_batch", options.micro_batch);
  if (options.micro_batch < 0) run.fail("micro_batch", fmt::format("{} samples cannot be; 0 means all.", options.micro_batch));
  run.read_choice("algorithm", options.algorithm, names_of(algorithms()));
}

}  // namespace

Experiment::Experiment(Config config, const TaskMaker& make) : config_(std::move(config)) {
  Section root = config_.root();
  for (const char* table : {"problem", "data", "inner", "hypergradient", "outer", "run"}) root.section(table);
  root.finish();

  RunSection run;
  Section run_section = root.section("run");
  read(run_section, run);
  device_ = c10::Device(run.device == "cuda" ? c10::kCUDA : c10::kCPU);
  threads_ = std::make_unique<ThreadsGuard>(static_cast<int>(run.threads));
  const auto seed = static_cast<uint64_t>(run.seed);

  // Steps and the rest of [run] come before the data, so that a slip is told at once.
  Section outer = root.section("outer");
  outer.read("steps", driver_.steps);
  if (driver_.steps < 0) outer.fail("steps", fmt::format("{} is negative; 0 or more would be right.", driver_.steps));
  read(run_section, driver_);
  run_section.finish();
  const AlgorithmMaker make_algorithm = algorithm_row(run.algorithm).read(root, seed);

  task_ = make(config_, device_);
  const Problem& problem = *task_.problem;
  if (run.oracle == "native" && !NativeOracle::takes(problem)) {
    run_section.fail("oracle", "the native oracle needs a generalised linear model (model = \"linear\") on the CPU; use \"auto\".");
  }
  first_order_ = make_oracle(problem, run.oracle == "finite-difference" ? "autodiff" : run.oracle);
  if (run.micro_batch > 0) micro_batches_ = std::make_unique<MicroBatchOracle>(*first_order_, run.micro_batch);
  const Oracle& exact = micro_batches_ ? *micro_batches_ : *first_order_;
  if (run.oracle == "finite-difference") differences_ = std::make_unique<FiniteDifferenceOracle>(exact);
  oracle_ = std::make_unique<CountedOracle>(differences_ ? *differences_ : exact);
  algorithm_ = make_algorithm(*oracle_, task_.notes);

  identity_ = task_.identity;
  for (const char* table : {"inner", "outer"}) {
    Section section = root.section(table);
    std::string batches;
    if (section.has("batches")) section.read_path("batches", batches);
    if (!batches.empty()) identity_ += fmt::format(", {} batches {}", table, fingerprint({read_npy(batches)}));
  }
}

const DoubleLoop& Experiment::double_loop(const char* what) const {
  const auto* loop = dynamic_cast<const DoubleLoop*>(algorithm_.get());
  require(loop != nullptr,
          fmt::format("{} looks at an inner solve and an estimate of the hypergradient, and run.algorithm = \"{}\" has none of its own; "
                      "--set run.algorithm=double-loop gives it those of the defaults.",
                      what, algorithm_->name()));
  return *loop;
}

namespace {

void notice(const RunFront& front, const std::string& sentence) {
  if (front.notice) front.notice(sentence);
}

RunResult drive(const Experiment& experiment, RunDirectory& directory, State state, const RunFront& front) {
  const DriverOptions& options = experiment.driver_options();
  RunResult result;
  std::string failed;
  {
    Progress progress(front.progress, options.steps, state.integer("step"));
    Watch watch;
    watch.interrupt = front.interrupt;
    watch.record = [&](const Record& record, const std::vector<RollBack>& since_last) {
      directory.append(record, since_last);
      if (!since_last.empty()) progress.clear();
      for (const RollBack& back : since_last) {
        notice(front, fmt::format("Back from step {} to step {}, with outer step × {:.3g} and damping {:.3g}: {}.", back.from,
                                  back.to, back.outer_scale, back.damping, back.reason));
      }
      progress.update(record);
      if (front.strict && record.grade == Grade::kBad) {
        failed = fmt::format("Stopped at step {}, because --strict was given: {}", record.step, record.message);
        return Signal::kAbort;
      }
      return front.record ? front.record(record) : Signal::kContinue;
    };
    watch.checkpoint = [&](const State& checkpoint) { directory.checkpoint(checkpoint); };
    result = Driver(experiment.algorithm(), options).run(std::move(state), watch);
  }
  if (!failed.empty()) result.message = failed;
  if (result.outcome != Outcome::kInterrupted) directory.finish(result, experiment.algorithm().name());
  return result;
}

/// From here on an Error is no misuse: the disk, or the problem, failed in the middle of the run.
template <class Function>
RunResult as_failure(const Function& function) {
  try {
    return function();
  } catch (const Error& error) {
    throw std::runtime_error(error.what());
  }
}

State on_device(State state, c10::Device device) {
  State moved = state;
  for (const auto& [name, value] : state.values()) {
    if (const auto* tensor = std::get_if<at::Tensor>(&value)) moved.set(name, tensor->to(device));
  }
  return moved;
}

RunResult ended_before(const RunDirectory& directory) {
  const auto summary = nlohmann::json::parse(read_file(directory.file("summary.json")), nullptr, false);
  require(summary.is_object(), fmt::format("{} is damaged.", directory.file("summary.json")));
  RunResult result;
  const auto outcome = summary.value("outcome", "");
  for (const Outcome candidate : {Outcome::kDone, Outcome::kBudget, Outcome::kStopped, Outcome::kAborted, Outcome::kDiverged}) {
    if (outcome == to_string(candidate)) result.outcome = candidate;
  }
  for (const Grade candidate : {Grade::kOk, Grade::kWarn, Grade::kBad}) {
    if (summary.value("status", "") == to_string(candidate)) result.worst = candidate;
  }
  result.message = summary.value("message", "");
  result.steps = summary.value("steps", int64_t{0});
  return result;
}

}  // namespace

RunResult run_experiment(const Experiment& experiment, const std::string& out, const RunFront& front) {
  RunDirectory::check_free(out);
  State state = experiment.algorithm().init();
  RunDirectory directory = RunDirectory::create(out, experiment.text());
  directory.write_layout(experiment.problem().outer_layout(), experiment.problem().inner_layout(), experiment.identity());
  notice(front, fmt::format("Writing the run to {}.", out));
  return as_failure([&] { return drive(experiment, directory, std::move(state), front); });
}

RunResult resume_experiment(const std::string& path, const RunFront& front, const TaskMaker& make) {
  RunDirectory directory = RunDirectory::open(path);
  if (directory.finished()) {
    notice(front, fmt::format("The run in {} has ended already; nothing is left to do.", path));
    return ended_before(directory);
  }
  const Experiment experiment(Config::load(directory.file("config.toml")), make);
  const Problem& problem = experiment.problem();
  if (const std::string of_run = directory.identity(); !of_run.empty()) {
    require(of_run == experiment.identity(),
            fmt::format("{}: the run was started with other shapes, dtypes or data ({}) than are there now ({}). The run is as it was: "
                        "bring its data back, or start another one.",
                        path, of_run, experiment.identity()));
  }
  State state = experiment.algorithm().init();
  int64_t records = 0;
  if (directory.has_checkpoint()) {
    const State saved = on_device(directory.load_checkpoint(), experiment.device());
    const at::Tensor x = saved.tensor("x"), y = saved.tensor("y");
    require(x.sizes() == state.tensor("x").sizes() && y.sizes() == state.tensor("y").sizes() &&
                x.scalar_type() == state.tensor("x").scalar_type(),
            fmt::format("{}: x [{}] and y [{}] do not fit the problem's [{}] and [{}]; have the data changed?",
                        directory.file("checkpoint"), fmt::join(x.sizes(), ", "), fmt::join(y.sizes(), ", "),
                        fmt::join(state.tensor("x").sizes(), ", "), fmt::join(state.tensor("y").sizes(), ", ")));
    state = saved;
    records = state.has("driver.recorded") ? state.integer("driver.recorded") : 0;
    notice(front, fmt::format("Going on from step {} of {}.", state.integer("step"), experiment.driver_options().steps));
  } else {
    notice(front, "The run was stopped before its first checkpoint; it starts again.");
  }
  directory.write_layout(problem.outer_layout(), problem.inner_layout(), experiment.identity());
  directory.cut_log(records, experiment.driver_options().record_every);
  return as_failure([&] { return drive(experiment, directory, std::move(state), front); });
}

std::string default_run_directory(const std::string& config_path) {
  const std::string stem = fs::path(config_path).stem().string();
  for (int64_t n = 1;; ++n) {
    const std::string path = (fs::path("runs") / fmt::format("{}-{}", stem.empty() ? "run" : stem, n)).string();
    std::error_code error;
    if (!fs::exists(path, error)) return path;
  }
}

}  // namespace bilevel
