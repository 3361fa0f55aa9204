#include "tasks/experiment.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "bilevel/algorithm/registry.h"
#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/oracle/choice.h"
#include "bilevel/oracle/distributed.h"
#include "bilevel/oracle/finite_difference.h"
#include "bilevel/oracle/micro_batch.h"
#include "bilevel/oracle/native.h"
#include "bilevel/oracle/saved_programs.h"
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
  double group_timeout = 60;  // seconds that one process waits for the others
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
  run.read("group_timeout", options.group_timeout);
  if (!(options.group_timeout > 0)) {
    run.fail("group_timeout", fmt::format("{} seconds cannot be waited; more than 0 would be right.", options.group_timeout));
  }
}

}  // namespace

Experiment::Experiment(Config config, const TaskMaker& make, std::shared_ptr<Processes> processes)
    : config_(std::move(config)), processes_(std::move(processes)) {
  Section root = config_.root();
  for (const char* table : {"problem", "data", "inner", "hypergradient", "outer", "run"}) root.section(table);
  root.finish();

  RunSection run;
  Section run_section = root.section("run");
  read(run_section, run);
  device_ = c10::Device(run.device == "cuda" ? c10::kCUDA : c10::kCPU);
  threads_ = std::make_unique<ThreadsGuard>(static_cast<int>(run.threads));
  if (processes_) processes_->set_timeout(run.group_timeout);
  const auto seed = static_cast<uint64_t>(run.seed);

  // Steps and the rest of [run] come before the data, so that a slip is told at once.
  Section outer = root.section("outer");
  outer.read("steps", driver_.steps);
  if (driver_.steps < 0) outer.fail("steps", fmt::format("{} is negative; 0 or more would be right.", driver_.steps));
  read(run_section, driver_);
  run_section.finish();
  const AlgorithmRow& row = algorithm_row(run.algorithm);
  if (processes_ && processes_->size() > 1 && !row.in_several_processes) {
    run_section.fail("algorithm",
                     fmt::format("\"{}\" runs its members in threads of one process (--threads), and there are {} processes.",
                                 row.name, processes_->size()));
  }
  const AlgorithmMaker make_algorithm = row.read(root, seed);

  task_ = make(config_, device_);
  const Problem& problem = *task_.problem;
  if (run.oracle == "native" && !NativeOracle::takes(problem)) {
    run_section.fail("oracle",
                     "the native oracle needs a generalised linear model (model = \"linear\") on the CPU; use \"auto\".");
  }
  if (run.oracle == "compiled" && !task_.programs) {
    task_.programs = saved_programs(problem_key());
    if (!task_.programs) {
      run_section.fail(
          "oracle",
          "programs have not been compiled for this problem, machine and number of threads; `python -m bilevel compile "
          "CONFIG` with the same arguments does it once. Or use \"auto\".");
    }
  }
  first_order_ = make_oracle(problem, run.oracle == "finite-difference" ? "autodiff" : run.oracle, task_.programs);
  if (run.micro_batch > 0) micro_batches_ = std::make_unique<MicroBatchOracle>(*first_order_, run.micro_batch);
  const Oracle& own = micro_batches_ ? *micro_batches_ : *first_order_;
  if (processes_) shared_ = std::make_unique<DistributedOracle>(own, processes_);
  const Oracle& exact = shared_ ? *shared_ : own;
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

std::string Experiment::problem_key() const {
  std::istringstream text(config_.text());
  std::string key = task_.identity;
  bool inside = false;
  for (std::string line; std::getline(text, line);) {
    if (line.starts_with("[")) inside = line.starts_with("[problem") || line.starts_with("[data");
    if (inside) key += "\n" + line;
  }
  return key;
}

const DoubleLoop& Experiment::double_loop(const char* what) const {
  const auto* loop = dynamic_cast<const DoubleLoop*>(algorithm_.get());
  require(loop != nullptr,
          fmt::format(
              "{} looks at one double loop, an inner solve and an estimate of the hypergradient, and run.algorithm = "
              "\"{}\" is none; --set run.algorithm=double-loop makes one of what the configuration says, and of the defaults.",
              what, algorithm_->name()));
  return *loop;
}

namespace {

void notice(const RunFront& front, const std::string& sentence) {
  if (front.notice) front.notice(sentence);
}

/// `work`, in all processes or in none where there are several.
template <class F>
auto in_all(const Processes* processes, const F& work) -> decltype(work()) {
  return processes ? processes->all_or_none(work) : work();
}

/// Processes that see other files would compute something that nobody asked for.
void compare(const Experiment& experiment) {
  const Processes* processes = experiment.processes();
  if (!processes) return;
  const std::string here = fmt::format("{}{}", experiment.text(), experiment.identity()), first = processes->of_first(here);
  processes->all_or_none([&] {
    require(here == first,
            fmt::format("Process {} of {} has read another configuration or other data than process 0; all must find the same "
                        "files, and have the same number of threads (--threads).",
                        processes->rank(), processes->size()));
    return true;
  });
}

void tell(RunDirectory& directory, const RunFront& front, Progress& progress, const Record& record,
          const std::vector<RollBack>& since_last) {
  directory.append(record, since_last);
  if (!since_last.empty()) progress.clear();
  for (const RollBack& back : since_last) {
    notice(front, fmt::format("Back from step {} to step {}, with outer step × {:.3g} and damping {:.3g}: {}.", back.from,
                              back.to, back.outer_scale, back.damping, back.reason));
  }
  progress.update(record);
}

/// `directory` is null in all processes but the first.
RunResult drive(const Experiment& experiment, RunDirectory* directory, State state, const RunFront& front) {
  const DriverOptions& options = experiment.driver_options();
  const Processes* processes = experiment.processes();
  RunResult result;
  std::string failed;
  {
    Progress progress(directory ? front.progress : ProgressOptions{}, options.steps, state.integer("step"));
    Watch watch;
    watch.interrupt = front.interrupt;
    watch.record = [&](const Record& record, const std::vector<RollBack>& since_last) {
      if (directory) tell(*directory, front, progress, record, since_last);
      if (front.strict && record.grade == Grade::kBad) {
        failed = fmt::format("Stopped at step {}, because --strict was given: {}", record.step, record.message);
        return Signal::kAbort;
      }
      return front.record ? front.record(record) : Signal::kContinue;
    };
    if (directory) watch.checkpoint = [&](const State& checkpoint) { directory->checkpoint(checkpoint); };
    if (processes) watch.greatest = [processes](double number) { return processes->greatest(number); };
    result = Driver(experiment.algorithm(), options).run(std::move(state), watch);
  }
  if (!failed.empty()) result.message = failed;
  if (directory && result.outcome != Outcome::kInterrupted) directory->finish(result, experiment.algorithm().name());
  return result;
}

/// From here on an Error is no misuse: the disk, or the problem, failed in the middle of the run.
template <class Function>
RunResult as_failure(const std::string& path, const Function& function) {
  try {
    return function();
  } catch (const Error& error) {
    throw std::runtime_error(error.what());
  } catch (const LostProcess& lost) {
    throw LostProcess(fmt::format("{} The run in {} can be continued, with any number of processes: bilevel resume {}.",
                                  lost.what(), path, path));
  }
}

State on_device(State state, c10::Device device) {
  State moved = state;
  for (const auto& [name, value] : state.values()) {
    if (const auto* tensor = std::get_if<at::Tensor>(&value)) moved.set(name, tensor->to(device));
  }
  return moved;
}

RunResult ended_before(const std::string& file) {
  const auto summary = nlohmann::json::parse(read_file(file), nullptr, false);
  require(summary.is_object(), fmt::format("{} is damaged.", file));
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
  const Processes* processes = experiment.processes();
  const bool first = !processes || processes->first();
  compare(experiment);
  in_all(processes, [&] {
    if (first) RunDirectory::check_free(out);
    return true;
  });
  State state = experiment.algorithm().init();
  const auto directory = in_all(processes, [&] {
    if (!first) return std::unique_ptr<RunDirectory>();
    auto made = std::make_unique<RunDirectory>(RunDirectory::create(out, experiment.text()));
    made->write_layout(experiment.problem().outer_layout(), experiment.problem().inner_layout(), experiment.identity());
    return made;
  });
  if (first) notice(front, fmt::format("Writing the run to {}.", out));
  return as_failure(out, [&] { return drive(experiment, directory.get(), std::move(state), front); });
}

namespace {

void check_identity(const Experiment& experiment, const RunDirectory& directory) {
  const std::string of_run = directory.identity();
  require(
      of_run.empty() || of_run == experiment.identity(),
      fmt::format("{}: the run was started with other shapes, dtypes or data ({}) than are there now ({}). The run is as it was: "
                  "bring its data back, or start another one.",
                  directory.path(), of_run, experiment.identity()));
}

/// The checkpoint in `file`, where it fits the start of the problem.
State checkpoint_for(const State& start, const std::string& file, c10::Device device) {
  State saved = on_device(load_state(file), device);
  const at::Tensor x = saved.tensor("x"), y = saved.tensor("y");
  require(x.sizes() == start.tensor("x").sizes() && y.sizes() == start.tensor("y").sizes() &&
              x.scalar_type() == start.tensor("x").scalar_type(),
          fmt::format("{}: x [{}] and y [{}] do not fit the problem's [{}] and [{}]; have the data changed?", file,
                      fmt::join(x.sizes(), ", "), fmt::join(y.sizes(), ", "), fmt::join(start.tensor("x").sizes(), ", "),
                      fmt::join(start.tensor("y").sizes(), ", ")));
  return saved;
}

}  // namespace

RunResult resume_experiment(const std::string& path, const RunFront& front, const TaskMaker& make,
                            std::shared_ptr<Processes> processes) {
  const bool first = !processes || processes->first();
  const auto directory = in_all(processes.get(), [&] {
    return first ? std::make_unique<RunDirectory>(RunDirectory::open(path)) : std::unique_ptr<RunDirectory>();
  });
  const auto file = [&](const char* name) { return (fs::path(path) / name).string(); };
  if (in_all(processes.get(), [&] { return fs::exists(file("summary.json")); })) {
    if (first) notice(front, fmt::format("The run in {} has ended already; nothing is left to do.", path));
    return ended_before(file("summary.json"));
  }
  const auto experiment = in_all(
      processes.get(), [&] { return std::make_unique<const Experiment>(Config::load(file("config.toml")), make, processes); });
  const Problem& problem = experiment->problem();
  compare(*experiment);
  in_all(processes.get(), [&] {
    if (first) check_identity(*experiment, *directory);
    return true;
  });
  State state = experiment->algorithm().init();
  in_all(processes.get(), [&] {
    int64_t records = 0;
    if (fs::exists(file("checkpoint"))) {
      state = checkpoint_for(state, file("checkpoint"), experiment->device());
      records = state.has("driver.recorded") ? state.integer("driver.recorded") : 0;
    }
    if (!first) return true;
    notice(front, fs::exists(file("checkpoint"))
                      ? fmt::format("Going on from step {} of {}.", state.integer("step"), experiment->driver_options().steps)
                      : "The run was stopped before its first checkpoint; it starts again.");
    directory->write_layout(problem.outer_layout(), problem.inner_layout(), experiment->identity());
    directory->cut_log(records, experiment->driver_options().record_every);
    return true;
  });
  return as_failure(path, [&] { return drive(*experiment, directory.get(), std::move(state), front); });
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
