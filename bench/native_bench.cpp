// The native oracle beside autodiff on generalised linear models with a weight for each sample and a ridge: the gradient, one
// product with the Hessian, both products of a vjp, and a block of eight directions. Prints one JSON object.
//
// The two are timed in turns, so that what else the machine does falls on both; times are processor seconds of one thread, the
// least of many. GF/s counts 4 n d C operations for each direction. Each result is compared with autodiff's too.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <exception>
#include <functional>
#include <limits>
#include <vector>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "bilevel/core/guards.h"
#include "bilevel/core/stream.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/native.h"
#include "bilevel/oracle/native_kernels.h"
#include "tasks/supervised.h"

namespace bilevel {
namespace {

using Json = nlohmann::ordered_json;

struct Subject {
  int64_t n, d, C, batch;
  const char* loss;
  at::ScalarType dtype;
};

double processor_seconds() {
  timespec t{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// The least time of one call, over as many as fit the budget, several calls at a time where one is too short for the clock.
class Timer {
 public:
  explicit Timer(std::function<void()> call) : call_(std::move(call)) {
    call_();
    const double t = processor_seconds();
    call_();
    calls_ = std::max(1, static_cast<int>(2e-4 / std::max(processor_seconds() - t, 1e-7)));
  }
  void sample() {
    const double t = processor_seconds();
    for (int i = 0; i < calls_; ++i) call_();
    best_ = std::min(best_, (processor_seconds() - t) / calls_);
  }
  double best() const { return best_; }

 private:
  std::function<void()> call_;
  int calls_ = 1;
  double best_ = std::numeric_limits<double>::infinity();
};

Json measure(const Subject& s, double seconds) {
  Draw draw = Stream(0, "native bench").at(0);
  SupervisedData data;
  const std::string loss = s.loss;
  const at::Tensor labels = loss == "squared" ? draw.normal({s.n, s.C}) : draw.integers(loss == "logistic" ? 2 : s.C, {s.n});
  data.inner = {draw.uniform({s.n, s.d}, s.dtype), labels};
  data.outer = {data.inner.features.narrow(0, 0, 1), labels.narrow(0, 0, 1)};
  SupervisedOptions options;
  options.loss = loss;
  options.dtype = s.dtype;
  options.outputs = s.C;
  options.l2 = 1e-2;
  options.hyperparameters = {{.kind = Hyperparameter::Kind::kSampleWeight}};
  const SupervisedProblem problem(options, data);
  const NativeOracle native(problem);
  const AutodiffOracle autodiff(problem);
  const at::Tensor x = problem.initial_outer(), y = draw.normal({problem.inner_layout().size()}, s.dtype) * 0.02;
  const at::Tensor v = draw.normal({8, y.size(0)}, s.dtype);
  Batch batch;
  if (s.batch > 0) batch.samples = draw.integers(s.n, {s.batch});
  const auto p = native.linearize_inner(x, y, batch), q = autodiff.linearize_inner(x, y, batch);

  Json out = {{"n", s.n}, {"d", s.d}, {"C", s.C}, {"batch", s.batch}, {"loss", loss}, {"dtype", c10::toString(s.dtype)}};
  const double work = 4e-9 * static_cast<double>((s.batch > 0 ? s.batch : s.n) * s.d * s.C);
  const auto compare = [&](const char* name, double directions, const std::function<at::Tensor(bool)>& call) {
    const at::Tensor a = call(true), b = call(false);
    Timer ours([&] { call(true); }), theirs([&] { call(false); });
    const double start = processor_seconds();
    do {
      ours.sample();
      theirs.sample();
    } while (processor_seconds() - start < seconds);
    out[name] = {{"native_us", ours.best() * 1e6},
                 {"autodiff_us", theirs.best() * 1e6},
                 {"ratio", theirs.best() / ours.best()},
                 {"native_gflops", work * directions / ours.best()},
                 {"difference", ((a - b).norm() / b.norm()).item<double>()}};
  };
  compare("gradient", 1, [&](bool ours) { return ours ? native.inner(x, y, batch).y : autodiff.inner(x, y, batch).y; });
  compare("hvp", 1, [&](bool ours) { return (ours ? p : q)->jvp_y(v[0]); });
  compare("vjp", 1, [&](bool ours) { return (ours ? p : q)->vjp(v[0]).x; });
  compare("hvp_of_8", 8, [&](bool ours) { return (ours ? p : q)->jvp_y(v); });
  return out;
}

}  // namespace
}  // namespace bilevel

int main(int argc, char** argv) {
  using bilevel::Subject;
  double seconds = 0.5;
  CLI::App app("The native oracle beside autodiff.");
  app.add_option("--seconds", seconds, "processor time for each comparison");
  CLI11_PARSE(app, argc, argv);
  const std::vector<Subject> subjects = {
      {12000, 784, 10, 0, "softmax", at::kFloat}, {256, 784, 10, 0, "softmax", at::kFloat},
      {4096, 784, 10, 0, "softmax", at::kFloat},  {12000, 784, 10, 128, "softmax", at::kFloat},
      {64, 20, 2, 0, "softmax", at::kFloat},      {1000, 20, 1, 0, "logistic", at::kFloat},
      {20000, 50, 1, 0, "logistic", at::kFloat},  {20000, 50, 1, 64, "logistic", at::kFloat},
      {2000, 500, 1, 0, "squared", at::kDouble},  {12000, 784, 10, 0, "softmax", at::kDouble},
      {2000, 20000, 2, 0, "softmax", at::kFloat},
  };
  try {
    const bilevel::ThreadsGuard one(1);
    nlohmann::ordered_json out = {{"instruction_set", bilevel::native::instruction_set()}};
    for (const Subject& subject : subjects) {
      out["results"].push_back(bilevel::measure(subject, seconds));
      fmt::print(stderr, "{}\n", out["results"].back().dump());
    }
    fmt::print("{}\n", out.dump(1));
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
