#pragma once
#include <memory>

#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// Derivatives by LibTorch's automatic differentiation.
///
/// A linearization builds the graph of ∂y g once and keeps it; each product is one backward pass through it (reverse over
/// reverse), at 0.8–1.3 times the cost of a gradient, and gives H w and (∂x r)ᵀ w together. Forward-mode AD is not used: its
/// level is global to the process, and it does not cover the usual losses. The problem must outlive the oracle.
///
/// Of an optimality map given directly, `vjp` is one backward pass likewise; `jvp_y` (unless the map is symmetric) and `jvp_x`
/// keep one more graph, that of (∂y r)ᵀ w and (∂x r)ᵀ w, from the first such product on. The map need not be twice
/// differentiable for that: operations whose backward pass can be differentiated by its cotangent, as all of PyTorch's, serve.
class AutodiffOracle final : public Oracle {
 public:
  using Oracle::Oracle;
  std::unique_ptr<Linearization> linearize_inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  Gradients inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  Gradients outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  std::unique_ptr<OutputSpace> output_space(const at::Tensor& x, const at::Tensor& y,
                                            const OutputSamples& samples) const override;
};

}  // namespace bilevel
