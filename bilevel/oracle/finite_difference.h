#pragma once
#include <memory>
#include <utility>

#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// Second derivatives by central differences of first ones: for losses without a double backward.
///
/// A product costs two gradients, and its relative error is about 1e-9 in double and 1e-4 in float for smooth losses; at the
/// kinks of ReLU and max-pooling it is wrong by nature. The step is ε = ∛u · (1 + ‖point‖) / ‖direction‖ with u the unit
/// round-off. Of an optimality map given directly it has no `vjp`, and says so. First derivatives are those of the oracle that it
/// stands on, which must outlive it.
class FiniteDifferenceOracle final : public Oracle {
 public:
  explicit FiniteDifferenceOracle(const Oracle& first_order) : Oracle(first_order.problem()), first_order_(first_order) {}
  explicit FiniteDifferenceOracle(std::unique_ptr<const Oracle> first_order)
      : Oracle(first_order->problem()), owned_(std::move(first_order)), first_order_(*owned_) {}
  std::unique_ptr<Linearization> linearize_inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  Gradients inner(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override { return first_order_.inner(x, y, b); }
  Gradients outer(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override { return first_order_.outer(x, y, b); }
  at::Tensor inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return first_order_.inner_grad_x(x, y, b);
  }
  at::Tensor inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return first_order_.inner_value(x, y, b);
  }
  at::Tensor outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return first_order_.outer_value(x, y, b);
  }
  /// That of the oracle it stands on: its second derivatives are those of the loss by the outputs.
  std::unique_ptr<OutputSpace> output_space(const at::Tensor& x, const at::Tensor& y,
                                            const OutputSamples& samples) const override;

 private:
  const std::unique_ptr<const Oracle> owned_;  // or null
  const Oracle& first_order_;
};

/// The step length for a central difference at `point` along `direction`; 0 for a zero direction.
double difference_step(const at::Tensor& point, const at::Tensor& direction);

}  // namespace bilevel
