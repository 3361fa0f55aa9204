// What a product of the oracle costs beside one backward pass through the retained graph of ∂y g by LibTorch's own
// torch::autograd::grad: `jvp_y` beside grad by y, `vjp` beside grad by (y, x). Prints one JSON object.
//
// The two are timed in turns, so that what else the machine does falls on both; the ratio is that of the medians.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <exception>
#include <functional>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "bilevel/core/guards.h"
#include "bilevel/core/stream.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/function_problem.h"
#include "bilevel/problem/loss.h"
#include "bilevel/problem/model.h"

namespace bilevel {
namespace {

using Json = nlohmann::ordered_json;

struct Subject {
  std::string name, model, loss;
  std::vector<int64_t> sample_shape;
  int64_t samples, outputs;
};

// A weight σ(x_i) for each sample and a ridge: g = mean σ(x) ℓ + ½ 0.01 ‖y‖².
FunctionProblem problem_of(const Subject& subject, const Model& model) {
  Draw draw = Stream(0, "hvp bench").at(0);
  std::vector<int64_t> shape{subject.samples};
  shape.insert(shape.end(), subject.sample_shape.begin(), subject.sample_shape.end());
  const at::Tensor X = draw.normal(shape, at::kFloat);
  const Loss loss(subject.loss);
  const at::Tensor labels = loss.classifies() ? draw.integers(subject.loss == "logistic" ? 2 : subject.outputs, {subject.samples})
                                              : draw.normal({subject.samples}, at::kFloat);
  const at::Tensor targets = loss.targets(labels, subject.outputs, at::kFloat, "labels");
  const auto g = [&model, loss, X, targets](const at::Tensor& x, const at::Tensor& y) {
    return (x.sigmoid() * loss.losses(model.outputs(y, X), targets)).mean() + 0.005 * y.dot(y);
  };
  return FunctionProblem({.inner_loss = g,
                          .outer_loss = g,
                          .x0 = at::zeros({subject.samples}, at::kFloat),
                          .y0 = model.initial("random", draw, at::kFloat)});
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(values.size()) / 2, values.end());
  return values[values.size() / 2];
}

Json compare(const std::function<void()>& ours, const std::function<void()>& raw, double seconds) {
  const auto time = [](const std::function<void()>& f) {
    const auto began = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - began).count();
  };
  for (int i = 0; i < 5; ++i) ours(), raw();
  std::vector<double> a, b;
  for (double spent = 0; spent < seconds * 1e6 || a.size() < 21;) {
    a.push_back(time(ours));
    b.push_back(time(raw));
    b.push_back(time(raw));
    a.push_back(time(ours));
    spent += a.back() + b.back() + a[a.size() - 2] + b[b.size() - 2];
  }
  return {{"microseconds", median(a)}, {"backward_pass", median(b)}, {"ratio", median(a) / median(b)}, {"repetitions", a.size()}};
}

Json measure(const Subject& subject, double seconds) {
  ModelOptions options;
  options.kind = subject.model;
  options.hidden = {128};
  const auto model = make_model(options, subject.sample_shape, subject.outputs);
  const FunctionProblem problem = problem_of(subject, *model);
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0);
  const at::Tensor v = Stream(1, "v").at(0).normal({y.size(0)}, at::kFloat);
  const auto linearization = AutodiffOracle(problem).linearize_inner(x, y, {});

  const at::Tensor x_leaf = x.detach().requires_grad_(true), y_leaf = y.detach().requires_grad_(true);
  const at::Tensor r = torch::autograd::grad({problem.inner_loss(x_leaf, y_leaf, {})}, {y_leaf}, {}, true, true)[0];
  const auto raw_y = [&] { torch::autograd::grad({r}, {y_leaf}, {v}, true); };
  const auto raw_yx = [&] { torch::autograd::grad({r}, {y_leaf, x_leaf}, {v}, true); };
  const auto gradient = [&] { AutodiffOracle(problem).inner(x, y, {}); };
  Json row{{"problem", subject.name}, {"samples", subject.samples}, {"weights", y.size(0)}};
  row["jvp_y"] = compare([&] { linearization->jvp_y(v); }, raw_y, seconds);
  row["vjp"] = compare([&] { linearization->vjp(v); }, raw_yx, seconds);
  row["gradients_per_jvp_y"] = compare([&] { linearization->jvp_y(v); }, gradient, seconds)["ratio"];
  return row;
}

int run(int argc, char** argv) {
  CLI::App app("What a product costs beside a backward pass");
  double seconds = 1.0;
  app.add_option("--seconds", seconds, "for each comparison");
  CLI11_PARSE(app, argc, argv);
  const ThreadsGuard one(1);
  const std::vector<Subject> subjects = {
      {"ridge", "linear", "squared", {64}, 500, 1},
      {"logistic", "linear", "logistic", {784}, 2000, 1},
      {"mlp", "mlp", "softmax", {784}, 500, 10},
      {"cnn", "cnn", "softmax", {1, 28, 28}, 64, 10},
  };
  Json rows = Json::array();
  for (const Subject& subject : subjects) rows.push_back(measure(subject, seconds));
  fmt::print(
      "{}\n",
      Json{{"command", fmt::format("hvp_bench --seconds {}", seconds)}, {"threads", 1}, {"dtype", "float32"}, {"rows", rows}}
          .dump(2));
  return 0;
}

}  // namespace
}  // namespace bilevel

int main(int argc, char** argv) {
  try {
    return bilevel::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
