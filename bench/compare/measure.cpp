// Ours in the comparison with the peers (bench/compare): what one configuration takes, in a process of its own, with the
// protocol of the peers' harness. Writes the row as JSON and the results as .npy beside it.
//
//   gradient      ∂y g at y₀
//   hvp           one product with the Hessian of g at y₀ and the next ones on the same linearization: what a linear solve asks
//   for hvp-once      the linearization and one product hypergradient the inner solve and the estimate step          the same and
//   the outer update run           all outer steps from the start iteration     one outer step of many in a row, as a single-loop
//   method takes them; results are those after all outer steps
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "bench/compare/sinusoids.h"
#include "bilevel/core/error.h"
#include "bilevel/problem/npy.h"
#include "tasks/experiment.h"

namespace bilevel {
namespace {

using Json = nlohmann::ordered_json;

double seconds_now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// A line of /proc/self/status in MB.
double resident(const std::string& key) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(key, 0) == 0) return std::stod(line.substr(key.size() + 1)) / 1024;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

/// The first call apart; then samples of at least 2 ms until the budget is spent, at least five unless `repetitions` says.
Json measure(const std::function<void()>& call, double budget, int64_t repetitions) {
  const auto time = [&](int64_t calls) {
    const double t = seconds_now();
    for (int64_t i = 0; i < calls; ++i) call();
    return (seconds_now() - t) / static_cast<double>(calls);
  };
  const double base = resident("VmRSS:"), first = time(1);
  std::ofstream("/proc/self/clear_refs") << "5";  // resets the peak
  const double one = time(1);
  const auto calls = std::max<int64_t>(1, static_cast<int64_t>(2e-3 / std::max(one, 1e-7)));
  if (repetitions == 0) {
    repetitions = std::clamp<int64_t>(static_cast<int64_t>(budget / (one * static_cast<double>(calls))), 5, 200);
  }
  std::vector<double> times;
  for (int64_t i = 0; i < repetitions; ++i) times.push_back(time(calls));
  std::sort(times.begin(), times.end());
  const size_t n = times.size();
  return {{"first", first},
          {"median", (times[(n - 1) / 2] + times[n / 2]) / 2},
          {"min", times.front()},
          {"reps", repetitions},
          {"peak_mb", std::max(0.0, resident("VmHWM:") - base)}};
}

struct Arguments {
  std::string config, what = "hypergradient", direction, out;
  double seconds = 2.0;
  int64_t repetitions = 0;
};

int write(const Arguments& a, const Json& row, const std::map<std::string, at::Tensor>& found) {
  for (const auto& [name, value] : found) write_npy(value.detach().contiguous(), a.out + "." + name + ".npy");
  std::ofstream(a.out) << row.dump(1) << "\n";
  return 0;
}

int run_iterations(const Experiment& experiment, const Arguments& a) {
  constexpr int64_t kBlock = 3200;  // a call describes its first point, which costs as much as some tens of steps
  const Algorithm& algorithm = experiment.algorithm();
  State end = algorithm.init(), state = end;
  algorithm.step(end, experiment.driver_options().steps);
  Json row = measure([&] { algorithm.step(state, kBlock); }, a.seconds, a.repetitions);
  for (const char* time : {"first", "median", "min"}) row[time] = row[time].get<double>() / kBlock;
  return write(a, row, {{"x", end.tensor("x")}, {"y", end.tensor("y")}});
}

int run(const Arguments& a) {
  const Experiment experiment(Config::load(a.config), make_sinusoids_or_task);
  if (a.what == "iteration") return run_iterations(experiment, a);
  const DoubleLoop& algorithm = experiment.double_loop("compare");
  const Oracle& oracle = experiment.oracle();
  const State start = algorithm.init();
  const at::Tensor x = start.tensor("x"), y = start.tensor("y");
  const at::Tensor v = a.direction.empty() ? at::Tensor() : read_npy(a.direction);

  std::map<std::string, at::Tensor> found;
  std::function<void()> call;
  std::unique_ptr<Linearization> kept;
  if (a.what == "gradient") {
    call = [&] { found["grad"] = oracle.inner(x, y, {}).y; };
  } else if (a.what == "hvp") {
    kept = oracle.linearize_inner(x, y, {});
    call = [&] { found["hvp"] = kept->jvp_y(v); };
  } else if (a.what == "hvp-once") {
    call = [&] { found["hvp"] = oracle.linearize_inner(x, y, {})->jvp_y(v); };
  } else if (a.what == "hypergradient") {
    call = [&] {
      State after;
      found["hypergradient"] = algorithm.hypergradient(start, &after).value;
      found["y"] = after.tensor("y");
    };
  } else if (a.what == "step") {
    found["hypergradient"] = algorithm.hypergradient(start).value;
    call = [&] {
      State state = start;
      algorithm.step(state, 1);
      found["x"] = state.tensor("x");
    };
  } else if (a.what == "run") {
    call = [&] {
      State state = start;
      algorithm.step(state, experiment.driver_options().steps);
      found["x"] = state.tensor("x");
      found["y"] = state.tensor("y");
    };
  } else {
    throw Error(fmt::format("--what {}: gradient, hvp, hvp-once, hypergradient, step, run or iteration would be right.", a.what));
  }
  return write(a, measure(call, a.seconds, a.repetitions), found);
}

}  // namespace
}  // namespace bilevel

int main(int argc, char** argv) {
  bilevel::Arguments arguments;
  CLI::App app("What one configuration takes.");
  app.add_option("config", arguments.config)->required();
  app.add_option("--what", arguments.what, "gradient, hvp, hvp-once, hypergradient, step, run or iteration");
  app.add_option("--direction", arguments.direction, "v of a product, .npy");
  app.add_option("--out", arguments.out, "the row; results beside it as .npy")->required();
  app.add_option("--seconds", arguments.seconds, "for the samples");
  app.add_option("--repetitions", arguments.repetitions, "fixed; 0: as many as fit");
  CLI11_PARSE(app, argc, argv);
  try {
    return bilevel::run(arguments);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
