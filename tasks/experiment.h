#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bilevel/algorithm/double_loop.h"
#include "bilevel/core/config.h"
#include "bilevel/core/guards.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/oracle/processes.h"
#include "bilevel/run/driver.h"
#include "bilevel/run/progress.h"
#include "bilevel/run/run_directory.h"
#include "tasks/registry.h"

namespace bilevel {

/// Makes the task from [problem] and [data]; `make_task` for whatever is told in a configuration alone.
using TaskMaker = std::function<Task(const Config& config, c10::Device device)>;

/// Everything that a configuration describes, ready to run.
///
/// Reads [problem] and [data] (tasks/registry.h), [inner], [hypergradient], [outer] and [run], refuses keys that nobody reads,
/// and asks the estimator for its objections. Throws Error before anything is written. LibTorch's threads are set for its
/// lifetime.
///
/// With several `processes` each makes the same experiment, and the samples are shared among them (oracle/distributed.h).
class Experiment {
 public:
  explicit Experiment(Config config, const TaskMaker& make = make_task, std::shared_ptr<Processes> processes = nullptr);

  const Problem& problem() const { return *task_.problem; }
  const Task& task() const { return task_; }
  const CountedOracle& oracle() const { return *oracle_; }
  const Algorithm& algorithm() const { return *algorithm_; }
  /// For what looks inside a double loop. Throws Error, naming `what` looks, where the configuration describes another algorithm.
  const DoubleLoop& double_loop(const char* what) const;
  const DriverOptions& driver_options() const { return driver_; }
  c10::Device device() const { return device_; }
  const Processes* processes() const { return processes_.get(); }  // null: this one alone
  /// What a resumed run must find again, in one line: a hash of the data.
  const std::string& identity() const { return identity_; }
  /// The configuration, complete with defaults and absolute paths; it repeats the run.
  std::string text() const { return config_.text(); }
  /// What the losses depend on, in words: by this, programs that were compiled for them are found again.
  std::string problem_key() const;

 private:
  Config config_;
  std::string identity_;
  c10::Device device_ = c10::Device(c10::kCPU);
  std::unique_ptr<ThreadsGuard> threads_;
  Task task_;
  std::shared_ptr<Processes> processes_;
  std::unique_ptr<Oracle> first_order_, micro_batches_, shared_, differences_;
  std::unique_ptr<CountedOracle> oracle_;
  std::unique_ptr<Algorithm> algorithm_;
  DriverOptions driver_;
};

/// What the front wants to see of a run.
struct RunFront {
  ProgressOptions progress;
  bool strict = false;  // a run ends with the first hypergradient that is BAD
  const std::atomic<bool>* interrupt = nullptr;
  std::function<Signal(const Record&)> record;     // after it was logged
  std::function<void(const std::string&)> notice;  // one sentence: where the run is written, from where it goes on
};

/// Runs `experiment` from its start into the directory `out`, which must be free. Misuse and an unusable directory are Errors; a
/// disk that fails later is a std::runtime_error, and the earlier checkpoint stays good.
///
/// Of several processes all call this, with the same `out`; the first writes, and tells the front. One that is lost ends the run
/// in the others with a LostProcess, and a checkpoint.
RunResult run_experiment(const Experiment& experiment, const std::string& out, const RunFront& front = {});

/// Goes on with the run in `directory` to the same end, bit for bit, as if it had never been stopped: from its checkpoint, or
/// from the start where there is none. A run that has ended is left as it is, and its summary comes back (without last, state and
/// cost). Throws Error, and changes nothing, where the problem's identity is not that of the run: its data have changed. With
/// another number of processes than before the end is the same to rounding.
RunResult resume_experiment(const std::string& directory, const RunFront& front = {}, const TaskMaker& make = make_task,
                            std::shared_ptr<Processes> processes = nullptr);

/// runs/<stem of the configuration's file>-<n>, the first that is free.
std::string default_run_directory(const std::string& config_path);

}  // namespace bilevel
