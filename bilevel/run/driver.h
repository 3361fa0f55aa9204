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

/// What changes when a run goes back to its last good point.
enum class OnDivergence {
  kShrink,  // outer steps of half the size
  kDamp,    // more damping of the linear solves
  kBoth,
  kStop,  // nothing: the run ends at its last good point
};
std::string_view to_string(OnDivergence policy);  // as in a configuration: "shrink", …

/// One return to an earlier point after a failure.
struct RollBack {
  int64_t from = 0, to = 0;             // the step that failed, and the step done anew
  std::string reason;                   // one clause
  double outer_scale = 1, damping = 0;  // from then on
};

struct DriverOptions {
  int64_t steps = 100;                                         // outer updates
  double seconds = std::numeric_limits<double>::infinity();    // of computing, over all resumptions
  int64_t oracle_calls = std::numeric_limits<int64_t>::max();  // over all resumptions
  int64_t rollbacks = 3;                                       // three halvings of the step: more would hide a wrong set-up
  OnDivergence on_divergence = OnDivergence::kBoth;            // either alone may not be what went wrong
  double explosion = 1e3;  // a failure: ‖dF/dx‖ beyond so many times the median of the last records, and all before; 0: never
  double inner_rise = 10.0;        // a failure: inner loss and stationarity both so far beyond theirs; 0: never
  int64_t record_every = 1;        // updates between two records: those of a method whose steps take microseconds would cost more
  int64_t checkpoint_every = 10;   // steps
  double checkpoint_seconds = 30;  // whichever comes first
  std::vector<std::string> violations() const;
};
/// Reads [run] max_seconds, max_oracle_calls (0: no limit), rollbacks, on_divergence, explosion, inner_rise, record_every,
/// checkpoint_every, checkpoint_seconds. The steps come from [outer].
void read(Section& run, DriverOptions& options);

/// What follows a run while it goes on. Every member may be empty.
struct Watch {
  std::function<Signal(const Record&, const std::vector<RollBack>& since_last)> record;  // once for each recorded k, in order
  std::function<void(const State&)> checkpoint;
  const std::atomic<bool>* interrupt = nullptr;  // polled between steps
  /// Where several processes run together, the greatest of their numbers: what a clock or a signal decides, they decide alike.
  std::function<double(double)> greatest;
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
/// A record is a failure where its status is kDiverged or kNonFinite, where its numbers are not finite, where the hypergradient
/// has exploded (`explosion`), or where the inner problem has been lost (`inner_rise`: the inner loss alone may rise because x
/// asks for it, so the stationarity must have risen too). Both are measured against the medians of the last 11 good records, once
/// there are 3, and what was seen in any good record is none. Then the state before the last good step comes back, as
/// `on_divergence` says with `outer_scale` halved and `damping` raised (×10, from 1e-3), at most `rollbacks` times; each return
/// goes out with the next record, and says why.
///
/// A checkpoint is always the state *before* the last good step, so that a resumed run can roll back as the uninterrupted one
/// would; resuming does that step again. A LostProcess (oracle/processes.h) leaves such a checkpoint and goes on to the caller.
/// The driver keeps its own entries in the State, under names that start with `driver.`; `driver.recorded` is the number of
/// records already given out, `driver.next` the first step that may have the next one.
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
