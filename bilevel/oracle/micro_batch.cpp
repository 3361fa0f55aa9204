// With the n samples of a batch in parts P, each of n_P:   ℓ = Σ_P (n_P / n) ℓ_P,   and so all its derivatives.
#include "bilevel/oracle/micro_batch.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "bilevel/core/error.h"
#include "bilevel/oracle/output_space.h"

namespace bilevel {
namespace {

struct MicroBatch {
  Batch batch;
  double weight = 1;
};

/// A single part, the batch itself, where it is small enough or the loss takes no batches.
std::vector<MicroBatch> parts_of(const Batch& batch, int64_t samples, int64_t size, const at::Tensor& like) {
  const int64_t n = batch.size(samples);
  if (n <= size) return {{batch, 1.0}};
  const at::Tensor all = batch.full() ? at::arange(n, like.options().dtype(at::kLong)) : batch.samples;
  std::vector<MicroBatch> parts;
  for (int64_t first = 0; first < n; first += size) {
    const int64_t count = std::min(size, n - first);
    MicroBatch part{batch, static_cast<double>(count) / static_cast<double>(n)};
    part.batch.samples = all.narrow(0, first, count);
    part.batch.seed += static_cast<uint64_t>(parts.size());
    parts.push_back(std::move(part));
  }
  return parts;
}

at::Tensor plus(const at::Tensor& sum, const at::Tensor& term, double weight) {
  if (!term.defined()) return sum;
  return sum.defined() ? sum + weight * term : weight * term;
}

template <class F>
at::Tensor add_up(const std::vector<MicroBatch>& parts, const F& of) {
  at::Tensor sum;
  for (const MicroBatch& part : parts) sum = plus(sum, of(part.batch), part.weight);
  return sum;
}

template <class F>
Gradients add_up_gradients(const std::vector<MicroBatch>& parts, const F& of) {
  Gradients sum;
  for (const MicroBatch& part : parts) {
    const Gradients one = of(part.batch);
    sum = {plus(sum.value, one.value, part.weight), plus(sum.y, one.y, part.weight), plus(sum.x, one.x, part.weight)};
  }
  return sum;
}

class MicroBatchLinearization final : public Linearization {
 public:
  MicroBatchLinearization(const Oracle& oracle, at::Tensor x, at::Tensor y, std::vector<MicroBatch> parts)
      : oracle_(oracle), x_(std::move(x)), y_(std::move(y)), parts_(std::move(parts)) {
    inner_ = add_up_gradients(parts_, [&](const Batch& batch) { return oracle_.inner(x_, y_, batch); });
  }

  at::Tensor value() override { return inner_.value; }
  at::Tensor residual() override { return inner_.y; }
  at::Tensor grad_x() override {
    return add_up(parts_, [&](const Batch& batch) { return oracle_.inner_grad_x(x_, y_, batch); });
  }
  at::Tensor jvp_y(const at::Tensor& v) override {
    return add_up(parts_, [&](const Batch& batch) { return at_part(batch)->jvp_y(v); });
  }
  at::Tensor jvp_x(const at::Tensor& u) override {
    return add_up(parts_, [&](const Batch& batch) { return at_part(batch)->jvp_x(u); });
  }
  at::Tensor gauss_newton(const at::Tensor& v) override {
    return add_up(parts_, [&](const Batch& batch) { return at_part(batch)->gauss_newton(v); });
  }
  Vjp vjp(const at::Tensor& w) override {
    Vjp sum;
    for (const MicroBatch& part : parts_) {
      const Vjp one = at_part(part.batch)->vjp(w);
      sum = {plus(sum.y, one.y, part.weight), plus(sum.x, one.x, part.weight)};
    }
    return sum;
  }
  bool symmetric() const override {
    return !oracle_.problem().has_optimality_map() || oracle_.problem().optimality_map_is_symmetric();
  }

 private:
  std::unique_ptr<Linearization> at_part(const Batch& batch) const { return oracle_.linearize_inner(x_, y_, batch); }
  const Oracle& oracle_;
  const at::Tensor x_, y_;
  const std::vector<MicroBatch> parts_;
  Gradients inner_;
};

}  // namespace

MicroBatchOracle::MicroBatchOracle(const Oracle& oracle, int64_t size) : Oracle(oracle.problem()), oracle_(oracle), size_(size) {
  require(size >= 1, fmt::format("MicroBatchOracle: a micro-batch of {} samples; at least 1 would be right.", size));
}

std::unique_ptr<Linearization> MicroBatchOracle::linearize_inner(const at::Tensor& x, const at::Tensor& y,
                                                                 const Batch& batch) const {
  auto parts = parts_of(batch, problem().inner_samples(), size_, y);
  if (parts.size() == 1) return oracle_.linearize_inner(x, y, batch);
  return std::make_unique<MicroBatchLinearization>(oracle_, x.detach(), y.detach(), std::move(parts));
}

Gradients MicroBatchOracle::inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const auto parts = parts_of(batch, problem().inner_samples(), size_, y);
  if (parts.size() == 1) return oracle_.inner(x, y, batch);
  return add_up_gradients(parts, [&](const Batch& part) { return oracle_.inner(x, y, part); });
}

Gradients MicroBatchOracle::outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const auto parts = parts_of(batch, problem().outer_samples(), size_, y);
  if (parts.size() == 1) return oracle_.outer(x, y, batch);
  return add_up_gradients(parts, [&](const Batch& part) { return oracle_.outer(x, y, part); });
}

std::unique_ptr<OutputSpace> MicroBatchOracle::output_space(const at::Tensor& x, const at::Tensor& y,
                                                            const OutputSamples& samples) const {
  const auto inner = parts_of(samples.inner, problem().inner_samples(), size_, y);
  const auto outer = parts_of(samples.outer, problem().outer_samples(), size_, y);
  if (inner.size() == 1 && outer.size() == 1) return oracle_.output_space(x, y, samples);
  std::vector<SumOfOutputSpaces::Maker> makers;
  for (size_t i = 0; i < std::max(inner.size(), outer.size()); ++i) {
    OutputSamples part{{}, {}, 0, 0};
    if (i < inner.size()) part.inner = inner[i].batch, part.inner_weight = samples.inner_weight * inner[i].weight;
    if (i < outer.size()) part.outer = outer[i].batch, part.outer_weight = samples.outer_weight * outer[i].weight;
    makers.emplace_back([this, x, y, part] { return oracle_.output_space(x, y, part); });
  }
  return std::make_unique<SumOfOutputSpaces>(std::move(makers));
}

at::Tensor MicroBatchOracle::inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const auto parts = parts_of(batch, problem().inner_samples(), size_, y);
  if (parts.size() == 1) return oracle_.inner_grad_x(x, y, batch);
  return add_up(parts, [&](const Batch& part) { return oracle_.inner_grad_x(x, y, part); });
}

at::Tensor MicroBatchOracle::inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const auto parts = parts_of(batch, problem().inner_samples(), size_, y);
  if (parts.size() == 1) return oracle_.inner_value(x, y, batch);
  return add_up(parts, [&](const Batch& part) { return oracle_.inner_value(x, y, part); });
}

at::Tensor MicroBatchOracle::outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const auto parts = parts_of(batch, problem().outer_samples(), size_, y);
  if (parts.size() == 1) return oracle_.outer_value(x, y, batch);
  return add_up(parts, [&](const Batch& part) { return oracle_.outer_value(x, y, part); });
}

}  // namespace bilevel
