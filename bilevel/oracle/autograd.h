#pragma once
#include <vector>

#include <ATen/core/Tensor.h>

namespace bilevel {

/// The gradients of a scalar or, with `cotangent`, of ⟨output, cotangent⟩ by `inputs`; zeros where `output` does not depend on an
/// input. `create_graph` keeps the result differentiable, `retain_graph` the graph of `output` alive.
std::vector<at::Tensor> gradients(const at::Tensor& output, const std::vector<at::Tensor>& inputs,
                                  const at::Tensor& cotangent = {}, bool retain_graph = false, bool create_graph = false);

/// A copy of the handle that autograd treats as an independent variable.
at::Tensor leaf(const at::Tensor& value);

}  // namespace bilevel
