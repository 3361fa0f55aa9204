// What the compiled oracle takes beside autodiff on the problem of a configuration, whose programs `python -m bilevel compile`
// has made before. Prints one JSON object. The two are timed in turns, by the processor time of this thread; ratios are those of
// the medians.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <exception>
#include <functional>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "bilevel/core/stream.h"
#include "tasks/experiment.h"

namespace bilevel {
namespace {

using Json = nlohmann::ordered_json;

double microseconds(const std::function<void()>& work) {
  const auto now = [] {
    timespec t{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return static_cast<double>(t.tv_sec) * 1e6 + static_cast<double>(t.tv_nsec) / 1e3;
  };
  const double began = now();
  work();
  return now() - began;
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size()) / 2, values.end());
  return values[values.size() / 2];
}

Json compare(const std::function<void()>& compiled, const std::function<void()>& autodiff, double seconds) {
  for (int i = 0; i < 3; ++i) compiled(), autodiff();
  std::vector<double> a, b;
  for (double spent = 0; spent < seconds * 1e6 || a.size() < 7;) {
    a.push_back(microseconds(compiled));
    b.push_back(microseconds(autodiff));
    spent += a.back() + b.back();
  }
  return {{"compiled", median(a)}, {"autodiff", median(b)}, {"times_faster", median(b) / median(a)}, {"repetitions", a.size()}};
}

Experiment experiment_with(const char* oracle, const std::string& path, const std::vector<std::string>& sets) {
  Config config = Config::load(path);
  for (const std::string& assignment : sets) config.set(assignment);
  config.set("run.threads=1");
  config.set(fmt::format("run.oracle=\"{}\"", oracle));
  return Experiment(std::move(config));
}

/// `size` 0: the full batch.
Json measure(const std::string& path, const std::vector<std::string>& sets, int64_t size, double seconds) {
  const Experiment compiled = experiment_with("compiled", path, sets), autodiff = experiment_with("autodiff", path, sets);
  const at::Tensor x = compiled.problem().initial_outer();
  const at::Tensor y =
      0.1 * Stream(0, "point").at(0).normal({compiled.problem().inner_layout().size()}, at::kDouble).to(x.options());
  const at::Tensor w = Stream(0, "direction").at(0).normal({y.size(0)}, at::kDouble).to(x.options());
  Batch batch;
  if (size > 0) batch.samples = at::arange(size);
  const Oracle &ours = compiled.oracle(), &theirs = autodiff.oracle();
  const auto lin = ours.linearize_inner(x, y, batch), exact = theirs.linearize_inner(x, y, batch);
  const auto hypergradient = [](const Experiment& e) {
    return e.double_loop("bench").hypergradient(e.algorithm().init(), nullptr, {}).value;
  };
  const at::Tensor found = hypergradient(compiled), expected = hypergradient(autodiff);
  return {{"x", x.size(0)},
          {"y", y.size(0)},
          {"gradient", compare([&] { ours.inner(x, y, batch); }, [&] { theirs.inner(x, y, batch); }, seconds)},
          {"linearization",
           compare([&] { ours.linearize_inner(x, y, batch); }, [&] { theirs.linearize_inner(x, y, batch); }, seconds)},
          {"hvp", compare([&] { lin->jvp_y(w); }, [&] { exact->jvp_y(w); }, seconds)},
          {"vjp", compare([&] { lin->vjp(w); }, [&] { exact->vjp(w); }, seconds)},
          {"hypergradient", compare([&] { hypergradient(compiled); }, [&] { hypergradient(autodiff); }, seconds)},
          {"difference", ((found - expected).norm() / expected.norm()).item<double>()}};
}

}  // namespace
}  // namespace bilevel

int main(int argc, char** argv) {
  CLI::App app("The compiled oracle beside autodiff on the problem of a configuration.");
  std::string path;
  std::vector<std::string> sets;
  int64_t size = 0;
  double seconds = 3;
  app.add_option("config", path)->required();
  app.add_option("--set", sets, "key=value");
  app.add_option("--batch", size, "samples of gradients and products; 0: all");
  app.add_option("--seconds", seconds, "for each comparison");
  CLI11_PARSE(app, argc, argv);
  try {
    fmt::print("{}\n", bilevel::measure(path, sets, size, seconds).dump());
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 2;
  }
  return 0;
}
