#pragma once
#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

namespace bilevel {

/// The gradients of a scalar or, with `cotangent`, of ⟨output, cotangent⟩ by `inputs`; zeros where `output` does not depend on an
/// input. `create_graph` keeps the result differentiable, `retain_graph` the graph of `output` alive.
std::vector<at::Tensor> gradients(const at::Tensor& output, const std::vector<at::Tensor>& inputs,
                                  const at::Tensor& cotangent = {}, bool retain_graph = false, bool create_graph = false);

/// A copy of the handle that autograd treats as an independent variable.
at::Tensor leaf(const at::Tensor& value);

/// Applies `product` to a single direction, or to each row of a block.
at::Tensor rowwise(const at::Tensor& v, const std::function<at::Tensor(const at::Tensor&)>& product);

/// A vector as a function of several leaves, with products with its Jacobians J_i on both sides, each for as many times as one
/// likes. The products J_i u_i come from differentiating J_iᵀ w by w, in which it is linear: no forward mode is needed.
class Jacobian {
 public:
  Jacobian() = default;
  /// `output` as built, with gradients enabled, from `inputs`, which are leaves.
  Jacobian(at::Tensor output, std::vector<at::Tensor> inputs) : output_(std::move(output)), inputs_(std::move(inputs)) {}
  at::Tensor output() const { return output_.detach(); }
  std::vector<at::Tensor> pull(const at::Tensor& w) const;  // J_iᵀ w for each input
  at::Tensor push(size_t input, const at::Tensor& u);       // J_i u

 private:
  at::Tensor output_, w_;
  std::vector<at::Tensor> inputs_, pulled_;  // pulled_: as functions of w_, built when first asked for
};

}  // namespace bilevel
