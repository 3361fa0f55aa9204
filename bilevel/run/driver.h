#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "bilevel/algorithm/algorithm.h"
#include "bilevel/core/config.h"
#include "bilevel/core/state.h"

namespace bilevel {

/// What a callback wants: kStop ends the run in order, kAbort at once, without the evaluation of the last point.
enum class Signal { kContinue, kStop, kAbort };

/// How a run ended.
enum class Outcome {
  kDone,         // all steps
  kBudget,       // a budget of seconds or oracle calls was spent
  kStopped,      // a callback said stop
  kAborted,      // a callback said abort
  kInterrupted,  // from outside
  kDiverged,     // no roll-back helped
};
std::string_view to_string(Outcome outcome);

/// One return to an earlier point after a failure.
struct RollBack {
  int64_t from = 0, to = 0;  // the step that failed, and the step done anew
  std::string reason;
  double outer_scale = 1, damping = 0;  // from then on
};

struct DriverOptions {
  int64_t steps = 100;                                         // outer updates
  double seconds = std::numeric_limits<double>::infinity();    // of computing, over all resumptions
  int64_t oracle_calls = std::numeric_limits<int64_t>::max();  // over all resumptions
  int64_t rollbacks = 3;                                       // three halvings of the step: more would hide a wrong set-up
  int64_t checkpoint_every = 10;                               // steps
  double checkpoint_seconds = 30;                              // whichever comes first
  std::vector<std::string> violations() const;
};
/// Reads [run] max_seconds, max_oracle_calls (0: no limit), rollbacks, checkpoint_every, checkpoint_seconds. The steps come from
/// [outer].
void read(Section& run, DriverOptions& options);

/// What follows a run while it goes on. Every member may be empty.
struct Watch {
  std::function<Signal(const Record&, const std::vector<RollBack>& since_last)> record;  // once for each k, in order
  std::function<void(const State&)> checkpoint;
  const std::atomic<bool>* interrupt = nullptr;  // polled between steps
};

struct RunResult {
  Outcome outcome = Outcome::kDone;
  std::string message;  // one sentence
  State state;          // x and y as they are at the end
  Record last;          // of the final x
  Grade worst = Grade::kOk;
  int64_t steps = 0;  // updates done
  int64_t rollbacks = 0;
  Cost cost;  // over all resumptions; peak_bytes of this process
};

/// Runs an algorithm: steps, budgets, roll-backs, checkpoints, interruption.
///
/// After a record whose status is kDiverged or kNonFinite, or whose numbers are not finite, the state before the last good step
/// comes back with `outer_scale` halved and `damping` raised (×10, from 1e-3), at most `rollbacks` times. A checkpoint is always
/// the state *before* the last good step, so that a resumed run can roll back as the uninterrupted one would; resuming does that
/// step again. The driver keeps its own entries in the State, under names that start with `driver.`; `driver.recorded` is the
/// number of records already given out.
class Driver {
 public:
  Driver(const Algorithm& algorithm, DriverOptions options);
  /// From `state`: `algorithm.init()`, or a loaded checkpoint.
  RunResult run(State state, const Watch& watch = {}) const;

 private:
  const Algorithm& algorithm_;
  DriverOptions options_;
};

}  // namespace bilevel
