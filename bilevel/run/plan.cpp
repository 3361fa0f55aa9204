#include "bilevel/run/plan.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <numeric>

#include "bilevel/core/clock.h"
#include "bilevel/core/error.h"
#include "bilevel/core/memory_meter.h"
#include "bilevel/core/state.h"

namespace bilevel {
namespace {

constexpr int64_t kMostProbes = 40;
constexpr double kEnough = 1.0;  // seconds of probes after which one more says nothing new

struct Probe {
  Cost cost;         // of an ordinary step; peak_bytes of any
  double total = 0;  // seconds of the run
  int64_t count = 0;
};

/// What n steps take is n times this, however unlike they are.
double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

/// Which of the periods divide k.
std::vector<bool> kind_of(int64_t k, const std::vector<int64_t>& periods) {
  std::vector<bool> kind;
  for (const int64_t p : periods) kind.push_back(p > 0 && k % p == 0);
  return kind;
}

/// Steps from the start: one to warm up, then until they are enough and alike, then one of each other kind.
Probe probe(const PlanSubject& subject) {
  State state = subject.algorithm->init();
  Probe out;
  int64_t peak = 0;
  Record record;
  const auto take = [&](int64_t k) {
    state.set("step", k);
    const MemoryMeter meter;
    const Clock::time_point began = Clock::now();
    record = subject.algorithm->step(state, 1);
    ++out.count;
    const double seconds = seconds_since(began);
    peak = std::max({peak, meter.peak_bytes(), record.cost.peak_bytes});
    return seconds;
  };
  const double first = take(0);
  std::vector<double> seconds;
  double spent = first;
  for (int64_t calls_before = -1; out.count < kMostProbes && !failed(record.status);) {
    const double s = take(1);
    spent += s;
    const int64_t calls = record.cost.oracle_calls();
    const bool alike = calls_before < 0 || std::abs(calls - calls_before) <= calls_before / 10;
    if (!alike) seconds.clear();  // a warm start makes later solves shorter
    seconds.push_back(s);
    out.cost = record.cost;
    calls_before = calls;
    if (alike ? spent >= kEnough : spent >= 20 * kEnough) break;
  }
  const double ordinary = seconds.empty() ? first : mean(seconds);

  std::map<std::vector<bool>, double> by_kind = {{kind_of(1, subject.periods), ordinary}};
  const auto seconds_of = [&](int64_t k) {
    const std::vector<bool> kind = kind_of(k, subject.periods);
    const auto known = by_kind.find(kind);
    if (known != by_kind.end()) return known->second;
    const double s = failed(record.status) ? ordinary : take(k);
    return by_kind.emplace(kind, s).first->second;
  };
  out.total = first + seconds_of(0);  // the first step, and the last evaluation, which does all that there is to do
  for (int64_t k = 1; k < subject.steps; ++k) out.total += seconds_of(k);
  if (subject.steps == 0) out.total = first;
  out.cost.seconds = ordinary;
  out.cost.peak_bytes = peak;
  return out;
}

int64_t available_bytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string key, unit; file >> key;) {
    int64_t kilobytes = 0;
    file >> kilobytes;
    std::getline(file, unit);
    if (key == "MemAvailable:") return 1024 * kilobytes;
  }
  return sysconf(_SC_AVPHYS_PAGES) * sysconf(_SC_PAGESIZE);
}

std::string gigabytes(int64_t bytes) {
  const auto b = static_cast<double>(bytes);
  return b < 1e9 ? fmt::format("{:.3g} MB", 1e-6 * b) : fmt::format("{:.3g} GB", 1e-9 * b);
}

/// Seconds, bytes and calls after T inner steps, from two shorter solves, whose numbers they are not below.
struct Fit {
  Cost small, large;
  double total_small = 0, total_large = 0;
  int64_t t_small = 0, t_large = 0;

  static double line(double a, double b, double u, double v, double w) { return a + (b - a) * (w - u) / (v - u); }
  double seconds(int64_t T) const {
    return std::max(large.seconds, line(small.seconds, large.seconds, u(false), v(false), w(T, false)));
  }
  double total(int64_t T) const { return std::max(total_large, line(total_small, total_large, u(false), v(false), w(T, false))); }
  int64_t bytes(int64_t T, bool root) const {
    return static_cast<int64_t>(std::max(
        0.0, line(static_cast<double>(small.peak_bytes), static_cast<double>(large.peak_bytes), u(root), v(root), w(T, root))));
  }
  int64_t calls(int64_t Cost::*kind, int64_t T) const {
    return std::llround(
        line(static_cast<double>(small.*kind), static_cast<double>(large.*kind), u(false), v(false), w(T, false)));
  }

 private:
  double u(bool root) const { return w(t_small, root); }
  double v(bool root) const { return w(t_large, root); }
  static double w(int64_t T, bool root) { return root ? std::sqrt(static_cast<double>(T)) : static_cast<double>(T); }
};

class Planner {
 public:
  Planner(const PlanMaker& make, const PlanOptions& options) : make_(make), options_(options) {
    free_ = options.free_bytes > 0 ? options.free_bytes : available_bytes() * 9 / 10;
  }

  Plan run() {
    Forecast own;
    own.name = "as configured";
    foresee(own, /*checkpoints=*/false);
    require(own.possible, own.remark);
    plan_.forecasts.push_back(std::move(own));
    if (keeps_trajectory_ || !any_fits()) alternatives();
    choose();
    if (!remark_.empty()) plan_.advice += ' ' + remark_;
    return std::move(plan_);
  }

 private:
  void say(const std::string& doing) {
    if (options_.progress) options_.progress(doing, std::min(0.95, done_++ / 10.0));
  }

  int64_t all_of(const Cost& step) const { return std::max(loaded_peak_, plan_.resident_bytes + step.peak_bytes); }

  /// Fills in `forecast`, by whole steps where they are foreseen to be short and small.
  void foresee(Forecast& forecast, bool checkpoints) {
    say(forecast.name);
    try {
      std::optional<PlanSubject> subject = make_(forecast.sets);
      if (plan_.resident_bytes == 0) {
        const ProcessMemory memory = options_.memory();
        plan_.resident_bytes = memory.now;
        loaded_peak_ = memory.peak;
        plan_.steps = subject->steps;
        keeps_trajectory_ = subject->keeps_trajectory;
        inner_steps_ = subject->inner_steps;
        samples_ = subject->samples;
        plan_.limit = options_.limit;
        remark_ = subject->remark;
      }
      const int64_t T = subject->inner_steps;
      std::optional<Fit> fit;
      if (T > 64 && (subject->keeps_trajectory || T > 1000)) {
        subject.reset();
        fit = short_solves(forecast, T);
        subject = make_(forecast.sets);
      }
      const int64_t bytes = fit ? fit->bytes(T, checkpoints) : 0;
      const double seconds = fit ? fit->seconds(T) : 0;
      const int64_t most =
          options_.limit > 0 ? std::min(free_, std::max<int64_t>(options_.limit - plan_.resident_bytes, 0)) : free_;
      if (!fit || (bytes < most && seconds < (forecast.sets.empty() ? 1.0 : 0.25) * options_.probe_seconds)) {
        const Probe found = probe(*subject);
        forecast.step = found.cost;
        forecast.measured = true;
        forecast.probes += found.count;
        forecast.seconds = found.total;
      } else {
        forecast.step.seconds = seconds;
        forecast.step.peak_bytes = bytes;
        for (const auto kind : {&Cost::forwards, &Cost::gradients, &Cost::hvps, &Cost::cross_products}) {
          forecast.step.*kind = fit->calls(kind, T);
        }
        forecast.seconds = fit->total(T);
      }
      if (forecast.measured && plan_.forecasts.empty()) {
        // What libraries allocate once they are used, and no meter of tensors sees.
        overhead_ = std::max<int64_t>(0, options_.memory().peak - all_of(forecast.step));
      }
      forecast.bytes = all_of(forecast.step) + overhead_;
      forecast.fits = options_.limit == 0 || forecast.bytes <= options_.limit;
    } catch (const Error& error) {
      forecast.possible = forecast.fits = false;
      forecast.remark = error.what();
    }
  }

  Fit short_solves(Forecast& forecast, int64_t T) {
    Fit fit;
    fit.t_small = 16;
    fit.t_large = std::min<int64_t>(64, T);
    for (const int64_t t : {fit.t_small, fit.t_large}) {
      std::vector<std::string> sets = forecast.sets;
      sets.push_back(fmt::format("inner.steps={}", t));
      const PlanSubject subject = make_(sets);
      const Probe found = probe(subject);
      (t == fit.t_small ? fit.small : fit.large) = found.cost;
      (t == fit.t_small ? fit.total_small : fit.total_large) = found.total;
      forecast.probes += found.count;
    }
    return fit;
  }

  bool any_fits() const {
    return std::any_of(plan_.forecasts.begin(), plan_.forecasts.end(), [](const Forecast& f) { return f.fits; });
  }

  void alternatives() {
    const auto add = [&](std::string name, std::vector<std::string> sets, bool same, bool checkpoints) {
      Forecast forecast;
      forecast.name = std::move(name);
      forecast.sets = std::move(sets);
      forecast.same_numbers = same;
      foresee(forecast, checkpoints);
      if (forecast.possible) plan_.forecasts.push_back(std::move(forecast));
    };
    const std::string checkpoints = "hypergradient.memory=\"checkpoints\"";
    if (keeps_trajectory_) {
      for (const char* memory : {"graphs", "states", "checkpoints"}) {
        add(fmt::format("memory = \"{}\"", memory), {fmt::format("hypergradient.memory=\"{}\"", memory)}, true,
            std::string(memory) == "checkpoints");
      }
    }
    if (options_.limit == 0) return;
    // The same sums in parts: to rounding the same numbers.
    for (int64_t size = samples_ / 4; size >= 16 && !any_fits(); size /= 4) {
      std::vector<std::string> sets = {fmt::format("run.micro_batch={}", size)};
      if (keeps_trajectory_) sets.push_back(checkpoints);
      add(fmt::format("micro-batches of {}{}", size, keeps_trajectory_ ? " and checkpoints" : ""), sets, true, true);
    }
    if (!keeps_trajectory_) return;
    // Differentiating fewer of the last steps: another number, but a smaller one.
    for (const int64_t parts : {2, 5, 20}) {
      const int64_t last = inner_steps_ / parts;
      if (last < 1 || any_fits()) break;
      add(fmt::format("the last {} steps", last), {fmt::format("hypergradient.steps={}", last), checkpoints}, false, true);
    }
  }

  void choose() {
    std::optional<size_t>& choice = plan_.choice;
    for (const bool same : {true, false}) {
      for (size_t i = 0; i < plan_.forecasts.size() && !(choice && plan_.forecasts[*choice].same_numbers && !same); ++i) {
        const Forecast& one = plan_.forecasts[i];
        if (one.same_numbers != same || !one.fits) continue;
        // What is there already is kept where nothing is gained that could be told from noise.
        if (!choice || one.seconds < 0.7 * plan_.forecasts[*choice].seconds) choice = i;
      }
    }
    const Forecast& own = plan_.forecasts.front();
    const std::string takes = fmt::format(
        "As configured, an outer step takes {:.3g} s and {} of tensors; {} steps take {:.3g} s, and the process "
        "holds at most {}.",
        own.step.seconds, gigabytes(own.step.peak_bytes), plan_.steps, own.seconds, gigabytes(own.bytes));
    if (!choice) {
      const auto least = std::min_element(plan_.forecasts.begin(), plan_.forecasts.end(),
                                          [](const Forecast& a, const Forecast& b) { return a.bytes < b.bytes; });
      plan_.advice = fmt::format(
          "{} Nothing foreseen fits into {}: the least is {}, with {}. A smaller inner batch, fewer inner steps or an "
          "implicit estimator would need less.",
          takes, gigabytes(options_.limit), gigabytes(least->bytes), least->name);
      return;
    }
    const Forecast& best = plan_.forecasts[*choice];
    if (*choice == 0) {
      plan_.advice = takes + (options_.limit > 0 ? fmt::format(" That fits into {}.", gigabytes(options_.limit)) : "");
    } else {
      plan_.advice = fmt::format("{}{} Take {}: {:.3g} s and {} a step, {:.3g} s in all, the process at most {}.{}", takes,
                                 own.fits ? "" : fmt::format(" That is more than {}.", gigabytes(options_.limit)), best.name,
                                 best.step.seconds, gigabytes(best.step.peak_bytes), best.seconds, gigabytes(best.bytes),
                                 best.same_numbers ? " It finds the same numbers."
                                                   : " It differentiates another function: check with `bilevel doctor`.");
    }
  }

  const PlanMaker& make_;
  const PlanOptions& options_;
  Plan plan_;
  int64_t free_ = 0, loaded_peak_ = 0, overhead_ = 0, inner_steps_ = 0, samples_ = 0;
  bool keeps_trajectory_ = false;
  std::string remark_;
  double done_ = 0;
};

}  // namespace

ProcessMemory process_memory() {
  ProcessMemory memory;
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    for (const auto& [key, into] : {std::pair("VmRSS:", &memory.now), std::pair("VmHWM:", &memory.peak)}) {
      if (line.starts_with(key)) *into = 1024 * std::atoll(line.c_str() + std::string(key).size());
    }
  }
  return memory;
}

Plan make_plan(const PlanMaker& make, const PlanOptions& options) {
  require(options.limit >= 0,
          fmt::format("make_plan: limit = {} is negative; bytes, or 0 for none, would be right.", options.limit));
  return Planner(make, options).run();
}

}  // namespace bilevel
