#include "bilevel/run/driver.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/clock.h"
#include "bilevel/core/error.h"
#include "bilevel/oracle/processes.h"

namespace bilevel {
namespace {

double number_or(const State& state, const std::string& name, double otherwise) {
  return state.has(name) ? state.number(name) : otherwise;
}

int64_t integer_or(const State& state, const std::string& name, int64_t otherwise) {
  return state.has(name) ? state.integer(name) : otherwise;
}

const std::vector<std::string> kPolicies = {"shrink", "damp", "both", "stop"};  // in the order of OnDivergence

constexpr size_t kWindow = 11;  // records: long enough for a median, short enough to follow what x does
constexpr size_t kFewest = 3;   // records without which there is no median to speak of

/// Numbers of the last good records, and the largest of all.
struct Recent {
  std::vector<double> values;
  double largest = -std::numeric_limits<double>::infinity();

  void push(double value) {
    largest = std::max(largest, value);
    values.push_back(value);
    if (values.size() > kWindow) values.erase(values.begin());
  }
  bool enough() const { return values.size() >= kFewest; }
  double median() const {
    std::vector<double> sorted = values;
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    return *middle;
  }
  /// A run that has converged leaves numbers that are nothing but rounding, and they may well jump by any factor: so what was
  /// seen before, however long ago, is no failure.
  bool exceeded(double value, double factor) const {
    if (factor <= 0 || !enough() || value <= largest) return false;
    const double m = median();
    return value - m > (factor - 1) * std::abs(m);
  }
};

/// What the driver knows, in the State so that a checkpoint has it.
struct Book {
  Cost cost;
  int64_t rollbacks = 0;
  int64_t recorded = 0, next = 0;
  Grade worst = Grade::kOk;
  Recent norms, inner_losses, stationarities;

  void remember(const Record& record) {
    norms.push(record.hypergradient_norm);
    inner_losses.push(record.inner_loss);
    stationarities.push(record.stationarity);
  }

  /// Forgets the records after `state`.
  void forget(const State& state) {
    norms = recent_of(state, "driver.norms");
    inner_losses = recent_of(state, "driver.inner_losses");
    stationarities = recent_of(state, "driver.stationarities");
  }

  static Book of(const State& state) {
    Book book;
    book.cost.forwards = integer_or(state, "driver.forwards", 0);
    book.cost.gradients = integer_or(state, "driver.gradients", 0);
    book.cost.hvps = integer_or(state, "driver.hvps", 0);
    book.cost.cross_products = integer_or(state, "driver.cross_products", 0);
    book.cost.samples = integer_or(state, "driver.samples", 0);
    book.cost.seconds = number_or(state, "driver.seconds", 0);
    book.cost.second_thread_seconds = number_or(state, "driver.second_thread_seconds", 0);
    book.cost.hidden_seconds = number_or(state, "driver.hidden_seconds", 0);
    book.rollbacks = integer_or(state, "driver.rollbacks", 0);
    book.recorded = integer_or(state, "driver.recorded", 0);
    book.next = integer_or(state, "driver.next", book.recorded);
    book.worst = static_cast<Grade>(std::clamp<int64_t>(integer_or(state, "driver.worst", 0), 0, 2));
    book.forget(state);
    return book;
  }

  void write(State& state) const {
    state.set("driver.forwards", cost.forwards);
    state.set("driver.gradients", cost.gradients);
    state.set("driver.hvps", cost.hvps);
    state.set("driver.cross_products", cost.cross_products);
    state.set("driver.samples", cost.samples);
    state.set("driver.seconds", cost.seconds);
    state.set("driver.second_thread_seconds", cost.second_thread_seconds);
    state.set("driver.hidden_seconds", cost.hidden_seconds);
    state.set("driver.rollbacks", rollbacks);
    state.set("driver.recorded", recorded);
    state.set("driver.next", next);
    state.set("driver.worst", static_cast<int64_t>(worst));
    state.set("driver.norms", tensor_of(norms));
    state.set("driver.inner_losses", tensor_of(inner_losses));
    state.set("driver.stationarities", tensor_of(stationarities));
  }

 private:
  static Recent recent_of(const State& state, const std::string& name) {
    if (!state.has(name)) return {};
    const at::Tensor values = state.tensor(name).to(at::kCPU, at::kDouble).contiguous();
    const double* const begin = values.data_ptr<double>();
    return {{begin + 1, begin + values.numel()}, *begin};
  }
  static at::Tensor tensor_of(const Recent& recent) {  // the largest, then the last ones
    std::vector<double> all = {recent.largest};
    all.insert(all.end(), recent.values.begin(), recent.values.end());
    return at::tensor(all, at::kDouble);
  }
};

/// Why `record` is a failure; empty where it is none.
std::string failure(const Record& record, const Book& book, const DriverOptions& options) {
  const std::string about = record.message.empty() ? "" : " (" + record.message + ")";
  if (record.status == Status::kDiverged) return fmt::format("the solve at step {} diverged{}", record.step, about);
  const bool finite =
      std::isfinite(record.outer_loss) && std::isfinite(record.inner_loss) && std::isfinite(record.hypergradient_norm);
  if (record.status == Status::kNonFinite || !finite) {
    return fmt::format("a loss or the hypergradient at step {} is not finite{}", record.step, about);
  }
  if (book.norms.exceeded(record.hypergradient_norm, options.explosion)) {
    return fmt::format("the hypergradient exploded at step {}: its norm is {:.3g}, and the median of the last {} was {:.3g}",
                       record.step, record.hypergradient_norm, book.norms.values.size(), book.norms.median());
  }
  if (book.inner_losses.exceeded(record.inner_loss, options.inner_rise) &&
      book.stationarities.exceeded(record.stationarity, options.inner_rise)) {
    return fmt::format(
        "the inner loss rose at step {} to {:.3g}, from a median of {:.3g}, and the inner solve left ‖r‖ = {:.3g}, "
        "from a median of {:.3g}",
        record.step, record.inner_loss, book.inner_losses.median(), record.stationarity, book.stationarities.median());
  }
  return "";
}

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

std::string_view to_string(OnDivergence policy) { return kPolicies[static_cast<size_t>(policy)]; }

std::vector<std::string> DriverOptions::violations() const {
  std::vector<std::string> found;
  if (steps < 0) found.push_back(fmt::format("steps = {} is negative", steps));
  if (!(seconds > 0)) found.push_back(fmt::format("max_seconds = {} is not positive", seconds));
  if (oracle_calls <= 0) found.push_back(fmt::format("max_oracle_calls = {} is not positive", oracle_calls));
  if (rollbacks < 0) found.push_back(fmt::format("rollbacks = {} is negative", rollbacks));
  if (!(explosion == 0 || explosion > 1))
    found.push_back(fmt::format("explosion = {} should be more than 1, or 0 for never", explosion));
  if (!(inner_rise == 0 || inner_rise > 1))
    found.push_back(fmt::format("inner_rise = {} should be more than 1, or 0 for never", inner_rise));
  if (record_every < 1) found.push_back(fmt::format("record_every = {} is not positive", record_every));
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
  std::string policy(to_string(options.on_divergence));
  run.read_choice("on_divergence", policy, kPolicies);
  options.on_divergence = static_cast<OnDivergence>(std::find(kPolicies.begin(), kPolicies.end(), policy) - kPolicies.begin());
  run.read("explosion", options.explosion);
  run.read("inner_rise", options.inner_rise);
  run.read("record_every", options.record_every);
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
  const auto together = [&](const auto& work) {
    try {
      return work();
    } catch (const LostProcess&) {
      checkpoint(resumable);
      throw;
    }
  };
  const auto greatest = [&](double number) { return watch.greatest ? together([&] { return watch.greatest(number); }) : number; };
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
    if (greatest(watch.interrupt && watch.interrupt->load() ? 1 : 0) > 0) {
      checkpoint(resumable);
      end(Outcome::kInterrupted, fmt::format("Interrupted after {} of {} steps; a checkpoint was written.", k, options_.steps));
      break;
    }

    book.write(state);
    const State before = state.clone();
    const Clock::time_point began = Clock::now();
    Record record = together([&] {
      return last ? algorithm_.evaluate(state) : algorithm_.step(state, std::min(options_.record_every, options_.steps - k));
    });
    record.cost.seconds = greatest(seconds_since(began));
    const int64_t peak = std::max(book.cost.peak_bytes, record.cost.peak_bytes);
    book.cost += record.cost;
    book.cost.peak_bytes = peak;

    if (const std::string reason = failure(record, book, options_); !reason.empty()) {
      const bool stop = options_.on_divergence == OnDivergence::kStop;
      if (!has_good || stop || book.rollbacks >= options_.rollbacks) {
        book.worst = Grade::kBad;
        record.grade = Grade::kBad;
        result.last = record;
        if (watch.record && record.step >= book.next) watch.record(record, pending);
        // The last point that was good is what a user can still use.
        state = has_good ? good : before;
        if (has_good) state.set("y", good_y);
        end(Outcome::kDiverged, !has_good ? fmt::format("The run gave up at its first point: {}.", reason)
                                : stop    ? fmt::format("The run stopped, as on_divergence = \"stop\" asks: {}.", reason)
                                          : fmt::format("The run gave up: {}, after {} roll-backs.", reason, book.rollbacks));
        break;
      }
      ++book.rollbacks;
      RollBack back;
      back.from = record.step;
      back.reason = reason;
      back.outer_scale = number_or(state, "outer_scale", 1.0);
      back.damping = number_or(state, "damping", 0.0);
      if (options_.on_divergence != OnDivergence::kDamp) back.outer_scale *= 0.5;
      if (options_.on_divergence != OnDivergence::kShrink) back.damping = std::max(1e-3, 10.0 * back.damping);
      state = good.clone();
      book.forget(good);
      back.to = state.integer("step");
      state.set("outer_scale", back.outer_scale);
      state.set("damping", back.damping);
      pending.push_back(std::move(back));
      continue;
    }

    book.worst = std::max(book.worst, record.grade);
    book.remember(record);
    if (record.step >= book.next) {
      book.next = record.step + 1;
      ++book.recorded;
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
    if (state.integer("step") - checkpointed >= options_.checkpoint_every ||
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
