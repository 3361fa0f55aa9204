// The native oracle beside autodiff on generalised linear models with a weight for each sample and a ridge: the gradient, one
// product with the Hessian, both products of a vjp, and a block of eight directions. Prints one JSON object.
//
// The two are timed in turns, so that what else the machine does falls on both; times are processor seconds of one thread, the
// least of many. GF/s counts 4 n d C operations for each direction; `gemm_gflops` is LibTorch's product of two square matrices of
// order 1,024 in the same dtype, timed after them, for it would empty the cache. Each result is compared with autodiff's too.
//
// Sparse subjects hold the same numbers as dense and as CSR, 1 in 100 of them not zero: `native` is CSR, `dense` the dense
// kernels.
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
#include "bilevel/problem/linear_form.h"
#include "tasks/supervised.h"

namespace bilevel {
namespace {

using Json = nlohmann::ordered_json;

struct Subject {
  int64_t n, d, C, batch;
  const char* loss;
  at::ScalarType dtype;
  double density = 1.0;
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
  const at::Tensor M = at::ones({1024, 1024}, s.dtype);
  at::Tensor product = at::empty_like(M);
  Timer gemm([&] { at::mm_out(product, M, M); });
  for (const double start = processor_seconds(); processor_seconds() - start < seconds;) gemm.sample();
  out["gemm_gflops"] = 2e-9 * 1024 * 1024 * 1024 / gemm.best();
  return out;
}

/// A softmax or logistic regression on features of which most are zero.
class Sparse final : public Problem {
 public:
  Sparse(const at::Tensor& features, const at::Tensor& labels, const Subject& s) {
    const Loss loss(s.loss);
    outer_.add("log ridge", {});
    inner_.add("W", {s.C, s.d}).add("c", {s.C});
    form_.features = features;
    form_.link = LinearForm::link_of(loss);
    form_.targets = loss.targets(labels, s.C, s.dtype, "Sparse");
    form_.outputs = s.C;
    form_.ridge_map = SpreadMap{.first = 0, .size = 1, .phi = SpreadMap::Phi::kExp};
  }
  const Layout& outer_layout() const override { return outer_; }
  const Layout& inner_layout() const override { return inner_; }
  at::Tensor inner_loss(const at::Tensor&, const at::Tensor&, const Batch&) const override { return {}; }
  at::Tensor outer_loss(const at::Tensor&, const at::Tensor&, const Batch&) const override { return {}; }
  const LinearForm* inner_linear_form() const override { return &form_; }

 private:
  Layout outer_, inner_;
  LinearForm form_;
};

Json measure_sparse(const Subject& s, double seconds) {
  Draw draw = Stream(1, "native bench").at(0);
  at::Tensor X = draw.normal({s.n, s.d}, s.dtype);
  X.masked_fill_(draw.uniform({s.n, s.d}).ge(s.density), 0);
  const std::string loss = s.loss;
  const at::Tensor labels = draw.integers(loss == "logistic" ? 2 : s.C, {s.n});
  const Sparse as_csr(X.to_sparse_csr(), labels, s), as_dense(X, labels, s);
  const NativeOracle csr(as_csr), dense(as_dense);
  const at::Tensor x = at::full({1}, -4.0, at::TensorOptions(s.dtype)), y = draw.normal({s.C * (s.d + 1)}, s.dtype) * 0.02,
                   v = draw.normal({s.C * (s.d + 1)}, s.dtype);
  const auto p = csr.linearize_inner(x, y, {}), q = dense.linearize_inner(x, y, {});
  Timer ours([&] { p->jvp_y(v); }), theirs([&] { q->jvp_y(v); });
  const double start = processor_seconds();
  do {
    ours.sample();
    theirs.sample();
  } while (processor_seconds() - start < seconds);
  return {{"n", s.n},
          {"d", s.d},
          {"C", s.C},
          {"loss", loss},
          {"density", s.density},
          {"hvp",
           {{"native_us", ours.best() * 1e6},
            {"dense_us", theirs.best() * 1e6},
            {"ratio", theirs.best() / ours.best()},
            {"difference", ((p->jvp_y(v) - q->jvp_y(v)).norm() / q->jvp_y(v).norm()).item<double>()}}}};
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
    for (const Subject& subject :
         {Subject{5000, 10000, 1, 0, "logistic", at::kFloat, 0.01}, Subject{5000, 10000, 10, 0, "softmax", at::kFloat, 0.01},
          Subject{5000, 10000, 10, 0, "softmax", at::kFloat, 0.1}}) {
      out["sparse"].push_back(bilevel::measure_sparse(subject, seconds));
      fmt::print(stderr, "{}\n", out["sparse"].back().dump());
    }
    fmt::print("{}\n", out.dump(1));
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
