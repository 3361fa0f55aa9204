// Microseconds of one SOBA or SABA step on logistic regression with a learned ridge for each feature (49,990 + 91,701 samples of
// 22 features, batches of 64, float32), beside the same SOBA step written as a plain LibTorch loop with autograd. They are timed
// in turns; times are processor seconds of one thread, the median of many. Prints one JSON object.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <exception>
#include <functional>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "bilevel/algorithm/saba.h"
#include "bilevel/algorithm/soba.h"
#include "bilevel/core/guards.h"
#include "bilevel/oracle/native.h"
#include "tasks/supervised.h"

namespace bilevel {
namespace {

constexpr int64_t kSteps = 32;  // timed at once
constexpr double kStep = 0.125;

double processor_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

Samples draw_samples(Draw& draw, int64_t n, const at::Tensor& truth) {
  const at::Tensor X = draw.normal({n, truth.numel()}) * at::logspace(-1, 0, truth.numel(), 10.0, at::kDouble);
  return {X.to(at::kFloat), (X.mv(truth) + 0.5 * draw.normal({n}) > 0).to(at::kLong)};
}

/// The step of SOBA by autograd, on contiguous batches.
class PlainLoop {
 public:
  explicit PlainLoop(const SupervisedData& data)
      : X_{data.inner.features, data.outer.features},
        t_{data.inner.labels.to(at::kFloat) * 2 - 1, data.outer.labels.to(at::kFloat) * 2 - 1},
        x_(at::zeros({22})),
        y_(at::zeros({22})),
        v_(at::zeros({22})) {
    x_.requires_grad_(true);
    y_.requires_grad_(true);
  }

  void steps() {
    for (int64_t i = 0; i < kSteps; ++i, ++t_step_) {
      const at::AutoGradMode grad_mode(true);
      const auto g = gradient(loss(0) + 0.5 * (x_.exp() * y_ * y_).sum(), {y_}, {}, true);
      const auto products = gradient(g[0], {y_, x_}, v_, false);
      const auto f = gradient(loss(1), {y_}, {}, false);
      const at::NoGradGuard no_grad;
      const double lr = kStep / std::sqrt(static_cast<double>(t_step_ + 1));
      y_.sub_(g[0].detach(), lr);
      v_.sub_(products[0] + f[0], lr);
      x_.sub_(products[1], lr);
    }
  }

 private:
  static std::vector<at::Tensor> gradient(const at::Tensor& of, const std::vector<at::Tensor>& by, const at::Tensor& cotangent,
                                          bool graph) {
    return torch::autograd::grad({of}, by, cotangent.defined() ? std::vector<at::Tensor>{cotangent} : std::vector<at::Tensor>{},
                                 graph, graph);
  }
  at::Tensor loss(int level) const {
    const int64_t batches = X_[level].size(0) / 64, k = t_step_ * 7919 % batches;
    const at::Tensor z = X_[level].narrow(0, 64 * k, 64).mv(y_);
    return at::log_sigmoid(t_[level].narrow(0, 64 * k, 64) * z).mean().neg();
  }

  at::Tensor X_[2], t_[2], x_, y_, v_;
  int64_t t_step_ = 0;
};

nlohmann::ordered_json measure(double seconds) {
  Draw draw = Stream(4, "stochastic bench").at(0);
  const at::Tensor truth = draw.normal({22}) * draw.uniform({22}).lt(0.5);
  SupervisedData data;
  data.inner = draw_samples(draw, 49990, truth);
  data.outer = draw_samples(draw, 91701, truth);
  SupervisedOptions options;
  options.loss = "logistic";
  options.model.bias = false;
  options.hyperparameters = {
      {.kind = Hyperparameter::Kind::kL2, .map = Hyperparameter::Map::kExp, .per = Hyperparameter::Per::kFeature}};
  const SupervisedProblem problem(options, data);
  const NativeOracle oracle(problem);
  SingleLoopOptions soba_options = Soba::defaults(), saba_options = Saba::defaults();
  soba_options.lr = saba_options.lr = soba_options.outer_lr = saba_options.outer_lr = kStep;
  const Soba soba(oracle, soba_options);
  const Saba saba(oracle, saba_options);
  State of_soba = soba.init(), of_saba = saba.init();
  PlainLoop plain(data);
  // A call describes its first point, metrics of all samples included, once for all its steps: that is measured apart.
  const auto alone = [](const SingleLoop& method, State& state) {
    const double t = processor_seconds();
    method.step(state, kSteps);
    const double few = processor_seconds() - t;
    method.step(state, 101 * kSteps);
    return (processor_seconds() - t - 2 * few) / (100 * kSteps);
  };
  std::vector<double> a, b, c;
  const double start = processor_seconds();
  do {
    a.push_back(alone(soba, of_soba));
    b.push_back(alone(saba, of_saba));
    const double t = processor_seconds();
    plain.steps();
    c.push_back((processor_seconds() - t) / kSteps);
  } while (processor_seconds() - start < seconds);
  const auto median = [](std::vector<double>& v) {
    std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
    return 1e6 * v[v.size() / 2];
  };
  const double of_a = median(a), of_b = median(b), of_c = median(c);
  return {{"soba_us", of_a},
          {"saba_us", of_b},
          {"plain_libtorch_us", of_c},
          {"ratio_soba", of_c / of_a},
          {"ratio_saba", of_c / of_b}};
}

}  // namespace
}  // namespace bilevel

int main(int argc, char** argv) {
  double seconds = 5;
  CLI::App app("Single-loop steps beside a plain LibTorch loop.");
  app.add_option("--seconds", seconds, "processor time for all");
  CLI11_PARSE(app, argc, argv);
  try {
    const bilevel::ThreadsGuard one(1);
    fmt::print("{}\n", bilevel::measure(seconds).dump(1));
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
