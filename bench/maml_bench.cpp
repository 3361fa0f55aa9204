// One outer step of MAML: sinusoids, a network 1-40-40-1 of ReLU, 10 + 10 points a task, five steps of gradient descent. All
// tasks joined into one problem, beside the same tasks one by one, in turns; processor milliseconds of one thread, medians.
// Prints one JSON object, with the relative difference of the two meta-gradients.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <ctime>
#include <exception>
#include <functional>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "bilevel/algorithm/double_loop.h"
#include "bilevel/core/guards.h"
#include "bilevel/core/stream.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/outer/adam.h"
#include "bilevel/problem/joined_problem.h"

namespace bilevel {
namespace {

double processor_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

class Sinusoids final : public Problem {
 public:
  explicit Sinusoids(int64_t tasks) : tasks_(tasks) {
    layout_.add("w1", {40, 1}).add("b1", {40}).add("w2", {40, 40}).add("b2", {40}).add("w3", {1, 40}).add("b3", {1});
    Draw draw = Stream(3, "maml").at(0);
    const at::Tensor amplitude = draw.uniform({tasks, 1, 1}) * 4.9 + 0.1, phase = draw.uniform({tasks, 1, 1}) * M_PI;
    const at::Tensor x = draw.uniform({tasks, 1, 20}) * 10 - 5;
    inputs_ = x.to(at::kFloat);
    targets_ = (amplitude * (x + phase).sin()).to(at::kFloat);
    std::vector<at::Tensor> start;
    for (const Part& part : layout_.parts()) {
      const double scale = part.shape.size() == 2 ? 1 / std::sqrt(static_cast<double>(part.shape[1])) : 0.0;
      start.push_back(draw.normal({part.size}) * scale);
    }
    x0_ = at::cat(start).to(at::kFloat);
  }

  const Layout& outer_layout() const override { return layout_; }
  const Layout& inner_layout() const override { return layout_; }
  at::Tensor initial_outer() const override { return x0_; }
  at::Tensor initial_inner(const at::Tensor& x, int64_t) const override { return x; }
  bool initial_inner_depends_on_outer() const override { return true; }
  int64_t inner_problems() const override { return tasks_; }
  at::Tensor inner_loss(const at::Tensor&, const at::Tensor& y, const Batch& batch) const override {
    return alone(y, batch.slice, 0);
  }
  at::Tensor outer_loss(const at::Tensor&, const at::Tensor& y, const Batch& batch) const override {
    return alone(y, batch.slice, 10);
  }

  /// Errors of all tasks, Y [k, dy] → [k], on ten points from `first` on.
  at::Tensor errors(const at::Tensor& Y, int64_t first) const {
    std::vector<int64_t> sizes;
    for (const Part& part : layout_.parts()) sizes.push_back(part.size);
    const auto p = Y.split_with_sizes(sizes, 1);
    const int64_t k = Y.size(0);
    const at::Tensor x = inputs_.narrow(2, first, 10), t = targets_.narrow(2, first, 10);
    // [k, features, points]
    const at::Tensor h1 = (p[0].view({k, 40, 1}) * x + p[1].view({k, 40, 1})).relu();
    const at::Tensor h2 = at::baddbmm(p[3].view({k, 40, 1}), p[2].view({k, 40, 40}), h1).relu();
    const at::Tensor out = at::baddbmm(p[5].view({k, 1, 1}), p[4].view({k, 1, 40}), h2);
    return (out - t).square().mean({1, 2});
  }

 private:
  at::Tensor alone(const at::Tensor& y, int64_t s, int64_t first) const {
    const auto p = layout_.split(y);
    const at::Tensor x = inputs_[s].narrow(1, first, 10), t = targets_[s].narrow(1, first, 10);
    const at::Tensor h1 = (p[0] * x + p[1].unsqueeze(1)).relu();
    const at::Tensor h2 = at::addmm(p[3].unsqueeze(1), p[2], h1).relu();
    return (at::addmm(p[5].unsqueeze(1), p[4], h2) - t).square().mean();
  }
  int64_t tasks_;
  Layout layout_;
  at::Tensor inputs_, targets_, x0_;
};

nlohmann::ordered_json measure(int64_t tasks, double seconds) {
  const Sinusoids base(tasks);
  const auto at_points = [&](int64_t first) {
    return [&base, first](const at::Tensor&, const at::Tensor& Y) { return base.errors(Y, first); };
  };
  const JoinedProblem joined(base, at_points(0), at_points(10));
  const AutodiffOracle of_base(base), of_joined(joined);
  RuleSolverOptions inner;
  inner.lr = 0.01;
  inner.steps = 5;
  const auto loop = [&](const Oracle& oracle) {
    DoubleLoopOptions options;
    options.start = Start::kCold;
    return DoubleLoop(oracle, std::make_shared<RuleSolver>(std::make_unique<SgdRule>(SgdRuleOptions{}), inner),
                      std::make_shared<Unrolled>(), std::make_shared<OuterAdam>(OuterAdamOptions{.lr = 1e-3}), options);
  };
  const DoubleLoop apart = loop(of_base), together = loop(of_joined);
  const at::Tensor a = apart.hypergradient(apart.init()).value, b = together.hypergradient(together.init()).value;
  std::vector<double> one_by_one, at_once;
  const auto time = [](const DoubleLoop& method, std::vector<double>& into) {
    State state = method.init();
    const double t = processor_seconds();
    method.step(state, 1);
    into.push_back(1e3 * (processor_seconds() - t));
  };
  const double start = processor_seconds();
  do {
    time(apart, one_by_one);
    time(together, at_once);
  } while (processor_seconds() - start < seconds);
  const auto median = [](std::vector<double>& v) {
    std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
    return v[v.size() / 2];
  };
  const double one = median(one_by_one), all = median(at_once);
  return {{"tasks", tasks},
          {"one_by_one_ms", one},
          {"joined_ms", all},
          {"ratio", one / all},
          {"difference", ((a - b).norm() / a.norm()).item<double>()}};
}

}  // namespace
}  // namespace bilevel

int main(int argc, char** argv) {
  double seconds = 3;
  CLI::App app("Tasks of few-shot learning, joined and one by one.");
  app.add_option("--seconds", seconds, "processor time for each number of tasks");
  CLI11_PARSE(app, argc, argv);
  try {
    const bilevel::ThreadsGuard one(1);
    nlohmann::ordered_json out;
    for (const int64_t tasks : {10, 100}) out.push_back(bilevel::measure(tasks, seconds));
    fmt::print("{}\n", out.dump(1));
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
