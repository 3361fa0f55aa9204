// How the time and the memory of a hypergradient grow: with the number n of samples, the number d of features and the number T of
// inner steps, on softmax regression with a weight for each sample (native oracle) and on a network (autodiff); and with the
// memory policies of unrolling, to T = 100,000. docs/growth.svg is drawn from it. Writes JSON: one record for each case.
//
// Times are processor seconds of one thread, the least of the calls that fit a budget, three at least but where one alone
// takes as long; bytes are those of all tensors alive at once, beyond what the problem holds.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "bilevel/core/memory_meter.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/linear/cg.h"
#include "bilevel/oracle/choice.h"
#include "tasks/supervised.h"

namespace bilevel {
namespace {

using Json = nlohmann::ordered_json;

struct Case {
  std::string axis;       // what grows: "n" | "d" | "T"
  std::string estimator;  // "unrolled" | "implicit"
  std::string memory;     // of unrolling
  int64_t n = 256, d = 64, T = 100;
  bool network = false;
};

SupervisedProblem make_problem(const Case& c) {
  Draw draw = Stream(0, "growth").at(0);
  const int64_t classes = 10;
  SupervisedData data;
  data.inner = {draw.normal({c.n, c.d}, at::kFloat) / std::sqrt(static_cast<double>(c.d)), draw.integers(classes, {c.n})};
  data.outer = {draw.normal({256, c.d}, at::kFloat) / std::sqrt(static_cast<double>(c.d)), draw.integers(classes, {256})};
  SupervisedOptions options;
  options.outputs = classes;
  options.l2 = 1e-2;
  options.hyperparameters = {{.kind = Hyperparameter::Kind::kSampleWeight}};
  if (c.network) options.model = {.kind = "mlp", .hidden = {32}};
  return SupervisedProblem(options, data);
}

double processor_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

Json measure(const Case& c, double budget) {
  const SupervisedProblem problem = make_problem(c);
  const std::unique_ptr<Oracle> oracle = make_oracle(problem);
  const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{}), {.lr = 0.5, .steps = c.T});
  std::unique_ptr<Estimator> estimator;
  if (c.estimator == "implicit") {
    estimator = std::make_unique<Implicit>(std::make_unique<Cg>(CgOptions{.iterations = 20, .tolerance = 0}));
  } else {
    const Memory memory = c.memory == "graphs" ? Memory::kGraphs : c.memory == "states" ? Memory::kStates : Memory::kCheckpoints;
    estimator = std::make_unique<Unrolled>(UnrolledOptions{.memory = memory});
  }
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0);
  TrajectoryPolicy policy = estimator->trajectory();
  policy.look_at_end = false;
  const auto hypergradient = [&] {
    InnerSolution solution = solver.solve(*oracle, x, 0, {.y = y}, policy);
    return estimator->estimate(EstimatorInput{*oracle, solver, x, solution, {}, {}, {}}).value;
  };
  double least = std::numeric_limits<double>::infinity();
  int64_t bytes = 0, calls = 0;
  const double start = processor_seconds();
  do {
    const MemoryMeter meter;
    const double t = processor_seconds();
    hypergradient();
    least = std::min(least, processor_seconds() - t);
    bytes = meter.peak_bytes();
    ++calls;
  } while (processor_seconds() - start < budget || (calls < 3 && least < budget));
  return {{"axis", c.axis},     {"estimator", c.estimator},
          {"memory", c.memory}, {"model", c.network ? "network" : "softmax"},
          {"n", c.n},           {"d", c.d},
          {"T", c.T},           {"weights", y.size(0)},
          {"seconds", least},   {"bytes", bytes}};
}

std::vector<Case> cases(int64_t most_steps) {
  std::vector<Case> all;
  for (const std::string estimator : {"unrolled", "implicit"}) {
    const std::string memory = estimator == "unrolled" ? "states" : "";
    for (int64_t n = 100; n <= 100'000; n = n * 10) {
      for (const int64_t part : {1, 3}) {
        if (n * part <= 100'000) all.push_back({"n", estimator, memory, n * part, 64, 20});
      }
    }
    for (int64_t d = 8; d <= 8192; d *= 2) all.push_back({"d", estimator, memory, 256, d, 20});
  }
  for (const bool network : {false, true}) {
    const int64_t most = network ? most_steps / 10 : most_steps;
    for (const std::string memory : {"graphs", "states", "checkpoints"}) {
      const int64_t longest = memory == "checkpoints" ? most : most / 10;  // a graph for each step would fill the machine
      for (int64_t T = 10; T <= longest; T *= 10) {
        for (const int64_t part : {1, 3}) {
          if (T * part > longest) continue;
          all.push_back({"T", "unrolled", memory, 256, 16, T * part, network});
        }
      }
    }
  }
  return all;
}

}  // namespace
}  // namespace bilevel

int main(int argc, char** argv) {
  CLI::App app{"How time and memory of a hypergradient grow with samples, features and steps."};
  std::string out;
  double budget = 0.5;
  int64_t steps = 100'000;
  app.add_option("--out", out, "JSON file; standard output without it");
  app.add_option("--seconds", budget, "for each case");
  app.add_option("--steps", steps, "the largest T");
  CLI11_PARSE(app, argc, argv);
  at::set_num_threads(1);
  nlohmann::ordered_json records = nlohmann::ordered_json::array();
  for (const bilevel::Case& c : bilevel::cases(steps)) {
    records.push_back(bilevel::measure(c, budget));
    fmt::print(stderr, "{}\n", records.back().dump());
  }
  const nlohmann::ordered_json all = {{"command", "build/bench/growth --out bench/results/growth.json"}, {"records", records}};
  if (out.empty()) {
    std::cout << all.dump(1) << "\n";
  } else {
    std::ofstream(out) << all.dump(1) << "\n";
  }
  return 0;
}
