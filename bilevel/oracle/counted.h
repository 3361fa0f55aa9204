#pragma once
#include <atomic>
#include <functional>
#include <memory>
#include <utility>

#include "bilevel/core/clock.h"
#include "bilevel/core/cost.h"
#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// Counts every call of the oracle that it stands on, which must outlive it.
///
/// A linearization counts as one gradient; a product with ∂y r as one HVP; a vjp as one HVP and one cross product; a product of a
/// block [k, d] counts k times. Scores of a batch count as its gradient; a joint pass counts as what is in it. An output space
/// counts a forward pass for each of its two outputs and again where features are asked for, two gradients for the gradient of an
/// adjoint's loss, and one cross product. The samples of each call are counted too. `watch`, where given, is called before each
/// call, and may end a computation by throwing.
class CountedOracle final : public Oracle {
 public:
  explicit CountedOracle(const Oracle& oracle, std::function<void()> watch = {})
      : Oracle(oracle.problem()), oracle_(oracle), meter_(std::make_shared<Meter>(Meter{{}, std::move(watch)})) {}
  std::unique_ptr<Linearization> linearize_inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  Gradients inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  Gradients outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  std::unique_ptr<OutputSpace> output_space(const at::Tensor& x, const at::Tensor& y,
                                            const OutputSamples& samples) const override;
  at::Tensor scores(const at::Tensor& x, const at::Tensor& y, const Batch& batch, Labels labels) const override;
  std::unique_ptr<JointPass> joint_pass() const override;
  at::Tensor whole(const at::Tensor& x_bar) const override { return oracle_.whole(x_bar); }
  int64_t greatest(int64_t metered) const override { return oracle_.greatest(metered); }

  const Cost& cost() const { return meter_->cost; }

  struct Meter {
    Cost cost;
    std::function<void()> watch;
    // `samples`: of each call.
    void add(int64_t Cost::*kind, int64_t samples, int64_t calls = 1) {
      if (watch) watch();
      std::atomic_ref(cost.*kind).fetch_add(calls, std::memory_order_relaxed);  // several threads may ask
      std::atomic_ref(cost.samples).fetch_add(calls * samples, std::memory_order_relaxed);
    }
  };

 private:
  const Oracle& oracle_;
  const std::shared_ptr<Meter> meter_;  // linearizations may outlive a call, and count on
};

/// What `oracle` is asked from here on, where it is counted, and the seconds that pass.
class CostSince {
 public:
  explicit CostSince(const Oracle& oracle);
  Cost operator()() const;

 private:
  const Clock::time_point began_ = Clock::now();
  const CountedOracle* counted_;
  const Cost before_;
};

}  // namespace bilevel
