#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bilevel/algorithm/algorithm.h"
#include "bilevel/core/cost.h"

namespace bilevel {

/// Bytes that this process holds now, as the system counts them; and the most that it ever held.
struct ProcessMemory {
  int64_t now = 0, peak = 0;
};
ProcessMemory process_memory();

/// A run that might be done.
struct PlanSubject {
  std::shared_ptr<const void> owner;  // of what `algorithm` refers to
  const Algorithm* algorithm = nullptr;
  int64_t steps = 0;                  // outer updates
  std::vector<int64_t> periods = {};  // steps that one of these divides, and the last evaluation, do more: bounds, spot checks
  int64_t inner_steps = 0;            // T of an update rule, or the most where a tolerance ends it; 0: no such number
  int64_t samples = 0;                // inner ones that are differentiated at once; 0: no such number
  bool keeps_trajectory = false;      // the estimator goes back through the inner solve, so that memory grows with T
  std::string remark = {};            // a sentence about what the figures leave out, for the advice
};
/// The run with these keys changed ("inner.steps=8"). Throws Error where they do not fit.
using PlanMaker = std::function<PlanSubject(const std::vector<std::string>& sets)>;

struct PlanOptions {
  int64_t limit = 0;          // bytes of the whole process; 0: none
  double probe_seconds = 20;  // a step that is foreseen to take longer is not taken, but extrapolated from shorter inner solves
  std::function<ProcessMemory()> memory = process_memory;
  int64_t free_bytes = 0;  // nor one that is foreseen to hold more; 0: what the machine has free
  std::function<void(const std::string& doing, double fraction)> progress = {};
};

/// What one way of doing the run would cost.
struct Forecast {
  std::vector<std::string> sets;  // what is changed in the configuration; empty: nothing
  std::string name;
  bool same_numbers = true;  // the run would find the same as with the configuration as it is, to rounding
  bool possible = true;      // false: `remark` says why not
  bool measured = false;     // whole steps were taken; otherwise extrapolated from short inner solves
  int64_t probes = 0;        // steps taken
  Cost step;                 // of an ordinary outer step; peak_bytes of the tensors that it makes
  double seconds = 0;        // of all outer steps and the last evaluation
  int64_t bytes = 0;         // most that the whole process holds
  bool fits = true;          // into the limit
  std::string remark;        // one sentence, or empty
};

struct Plan {
  int64_t steps = 0;
  int64_t resident_bytes = 0;       // of the process, with data and problem, before the first step
  int64_t limit = 0;                // 0: none
  std::vector<Forecast> forecasts;  // the configuration as it is first
  std::optional<size_t> choice;     // what to do: the fastest that fits, with the same numbers where there is one
  std::string advice;               // sentences
};

/// Forecasts seconds and bytes of a run.
///
/// Two outer steps are taken, the first of which is thrown away: memory pools, threads and the first, cold inner solve make it
/// unlike the others. More are taken where they are short, or still change in oracle calls, and one of each kind that does more
/// (error bounds, spot checks). Where the run goes back through its
/// inner solve, the other ways to do that are foreseen too. What would take too long or too much is foreseen from two short inner
/// solves: seconds and bytes are linear in T, the bytes of checkpoints in √T. Where nothing of that fits into the limit,
/// micro-batches and then fewer of the last steps are tried.
Plan make_plan(const PlanMaker& make, const PlanOptions& options = {});

}  // namespace bilevel
