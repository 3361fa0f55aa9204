#include "bilevel/run/driver.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point then) { return std::chrono::duration<double>(Clock::now() - then).count(); }

double number_or(const State& state, const std::string& name, double otherwise) {
  return state.has(name) ? state.number(name) : otherwise;
}

int64_t integer_or(const State& state, const std::string& name, int64_t otherwise) {
  return state.has(name) ? state.integer(name) : otherwise;
}

/// Why `record` is a failure; empty where it is none.
std::string failure(const Record& record) {
  const std::string about = record.message.empty() ? "" : " (" + record.message + ")";
  if (record.status == Status::kDiverged) return fmt::format("the solve at step {} diverged{}", record.step, about);
  const bool finite =
      std::isfinite(record.outer_loss) && std::isfinite(record.inner_loss) && std::isfinite(record.hypergradient_norm);
  if (record.status == Status::kNonFinite || !finite) {
    return fmt::format("a loss or the hypergradient at step {} is not finite{}", record.step, about);
  }
  return "";
}

/// What the driver knows, in the State so that a checkpoint has it.
struct Book {
  Cost cost;
  int64_t rollbacks = 0;
  int64_t recorded = 0;
  Grade worst = Grade::kOk;

  static Book of(const State& state) {
    Book book;
    book.cost.forwards = integer_or(state, "driver.forwards", 0);
    book.cost.gradients = integer_or(state, "driver.gradients", 0);
    book.cost.hvps = integer_or(state, "driver.hvps", 0);
    book.cost.cross_products = integer_or(state, "driver.cross_products", 0);
    book.cost.seconds = number_or(state, "driver.seconds", 0);
    book.rollbacks = integer_or(state, "driver.rollbacks", 0);
    book.recorded = integer_or(state, "driver.recorded", 0);
    book.worst = static_cast<Grade>(std::clamp<int64_t>(integer_or(state, "driver.worst", 0), 0, 2));
    return book;
  }

  void write(State& state) const {
    state.set("driver.forwards", cost.forwards);
    state.set("driver.gradients", cost.gradients);
    state.set("driver.hvps", cost.hvps);
    state.set("driver.cross_products", cost.cross_products);
    state.set("driver.seconds", cost.seconds);
    state.set("driver.rollbacks", rollbacks);
    state.set("driver.recorded", recorded);
    state.set("driver.worst", static_cast<int64_t>(worst));
  }
};

}  // namespace

std::string_view to_string(Outcome outcome) {
  switch (outcome) {
    case Outcome::kDone: return "done";
    case Outcome::kBudget: return "budget";
    case Outcome::kStopped: return "stopped";
    case Outcome::kAborted: return "aborted";
    case Outcome::kInterrupted: return "interrupted";
    case Outcome::kDiverged: return "diverged";
  }
  return "unknown";
}

std::vector<std::string> DriverOptions::violations() const {
  std::vector<std::string> found;
  if (steps < 0) found.push_back(fmt::format("steps = {} is negative", steps));
  if (!(seconds > 0)) found.push_back(fmt::format("max_seconds = {} is not positive", seconds));
  if (oracle_calls <= 0) found.push_back(fmt::format("max_oracle_calls = {} is not positive", oracle_calls));
  if (rollbacks < 0) found.push_back(fmt::format("rollbacks = {} is negative", rollbacks));
  if (checkpoint_every < 1) found.push_back(fmt::format("checkpoint_every = {} is not positive", checkpoint_every));
  if (!(checkpoint_seconds > 0)) found.push_back(fmt::format("checkpoint_seconds = {} is not positive", checkpoint_seconds));
  return found;
}

void read(Section& run, DriverOptions& options) {
  double seconds = std::isfinite(options.seconds) ? options.seconds : 0.0;
  int64_t calls = options.oracle_calls == std::numeric_limits<int64_t>::max() ? 0 : options.oracle_calls;
  run.read("max_seconds", seconds);
  run.read("max_oracle_calls", calls);
  run.read("rollbacks", options.rollbacks);
  run.read("checkpoint_every", options.checkpoint_every);
  run.read("checkpoint_seconds", options.checkpoint_seconds);
  options.seconds = seconds == 0 ? std::numeric_limits<double>::infinity() : seconds;
  options.oracle_calls = calls == 0 ? std::numeric_limits<int64_t>::max() : calls;
  run.check(options.violations());
}

Driver::Driver(const Algorithm& algorithm, DriverOptions options) : algorithm_(algorithm), options_(options) {
  const std::vector<std::string> violations = options_.violations();
  require(violations.empty(), fmt::format("Driver: {}", fmt::join(violations, "; ")));
}

RunResult Driver::run(State state, const Watch& watch) const {
  RunResult result;
  Book book = Book::of(state);
  std::vector<RollBack> pending;  // not yet given out with a record
  State good;                     // before the last good step
  at::Tensor good_y;              // what that step found at its x
  bool has_good = false;
  State resumable = state;  // the newest state from which all that is still to be recorded follows
  int64_t checkpointed = integer_or(state, "step", 0);
  Clock::time_point checkpoint_time = Clock::now();

  const auto checkpoint = [&](const State& at_step) {
    if (watch.checkpoint) watch.checkpoint(at_step);
    checkpointed = at_step.integer("step");
    checkpoint_time = Clock::now();
  };
  const auto end = [&](Outcome outcome, std::string message) {
    result.outcome = outcome;
    result.message = std::move(message);
  };

  for (;;) {
    const int64_t k = state.integer("step");
    // The last point is described only: record `steps` follows the last update.
    const bool budget_spent = book.cost.oracle_calls() >= options_.oracle_calls || book.cost.seconds >= options_.seconds;
    const bool stopping = budget_spent || result.outcome == Outcome::kStopped;
    const bool last = k >= options_.steps || stopping;
    if (watch.interrupt && watch.interrupt->load()) {
      checkpoint(resumable);
      end(Outcome::kInterrupted, fmt::format("Interrupted after {} of {} steps; a checkpoint was written.", k, options_.steps));
      break;
    }

    book.write(state);
    const State before = state.clone();
    const Clock::time_point began = Clock::now();
    Record record = last ? algorithm_.evaluate(state) : algorithm_.step(state, 1);
    record.cost.seconds = seconds_since(began);
    const int64_t peak = std::max(book.cost.peak_bytes, record.cost.peak_bytes);
    book.cost += record.cost;
    book.cost.peak_bytes = peak;

    if (const std::string reason = failure(record); !reason.empty()) {
      if (!has_good || book.rollbacks >= options_.rollbacks) {
        book.worst = Grade::kBad;
        record.grade = Grade::kBad;
        result.last = record;
        if (watch.record && record.step >= book.recorded) watch.record(record, pending);
        // The last point that was good is what a user can still use.
        state = has_good ? good : before;
        if (has_good) state.set("y", good_y);
        end(Outcome::kDiverged, has_good ? fmt::format("The run gave up: {}, after {} roll-backs.", reason, book.rollbacks)
                                         : fmt::format("The run gave up at its first point: {}.", reason));
        break;
      }
      ++book.rollbacks;
      RollBack back;
      back.from = record.step;
      back.reason = reason;
      back.outer_scale = 0.5 * number_or(state, "outer_scale", 1.0);
      back.damping = std::max(1e-3, 10.0 * number_or(state, "damping", 0.0));
      state = good.clone();
      back.to = state.integer("step");
      state.set("outer_scale", back.outer_scale);
      state.set("damping", back.damping);
      pending.push_back(std::move(back));
      continue;
    }

    book.worst = std::max(book.worst, record.grade);
    if (record.step >= book.recorded) {
      book.recorded = record.step + 1;
      result.last = record;
      if (watch.record) {
        const Signal signal = watch.record(record, pending);
        if (signal == Signal::kAbort) {
          end(Outcome::kAborted, fmt::format("Aborted by a callback at step {}.", record.step));
          break;
        } else if (signal == Signal::kStop && !last) {
          end(Outcome::kStopped, fmt::format("Stopped by a callback at step {}.", record.step));
        }
      }
      pending.clear();
    } else {
      result.last = record;
    }
    if (last) {
      if (budget_spent && k < options_.steps) {
        end(Outcome::kBudget, fmt::format("A budget was spent after {} of {} steps ({} oracle calls, {:.1f} s).", k,
                                          options_.steps, book.cost.oracle_calls(), book.cost.seconds));
      } else if (!stopping) {
        end(Outcome::kDone, fmt::format("{} outer steps done.", k));
      }
      break;
    }
    good = before;
    good_y = state.tensor("y").clone();
    has_good = true;
    if (!pending.empty()) continue;  // a roll-back must go out with the record that follows it
    resumable = good;
    if (record.step + 1 - checkpointed >= options_.checkpoint_every ||
        seconds_since(checkpoint_time) >= options_.checkpoint_seconds) {
      checkpoint(resumable);
    }
  }

  book.write(state);
  result.steps = state.integer("step");
  result.rollbacks = book.rollbacks;
  result.worst = book.worst;
  result.cost = book.cost;
  result.state = std::move(state);
  return result;
}

}  // namespace bilevel
