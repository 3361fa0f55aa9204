#include "bilevel/oracle/autograd.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

namespace bilevel {

std::vector<at::Tensor> gradients(const at::Tensor& output, const std::vector<at::Tensor>& inputs, const at::Tensor& cotangent,
                                  bool retain_graph, bool create_graph) {
  std::vector<at::Tensor> result(inputs.size());
  if (output.requires_grad()) {
    std::vector<at::Tensor> cotangents;
    if (cotangent.defined()) cotangents.push_back(cotangent);
    result =
        torch::autograd::grad({output}, inputs, cotangents, retain_graph || create_graph, create_graph, /*allow_unused=*/true);
  }
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!result[i].defined()) result[i] = at::zeros_like(inputs[i], inputs[i].options().requires_grad(false));
  }
  return result;
}

std::vector<at::Tensor> Jacobian::pull(const at::Tensor& w) const {
  return gradients(output_, inputs_, w, /*retain_graph=*/true);
}

at::Tensor Jacobian::push(size_t input, const at::Tensor& u) {
  if (pulled_.empty()) {
    const at::AutoGradMode grad_mode(true);
    w_ = at::zeros_like(output_, output_.options().requires_grad(false)).requires_grad_(true);
    pulled_ = gradients(output_, inputs_, w_, /*retain_graph=*/true, /*create_graph=*/true);
  }
  return gradients(pulled_[input], {w_}, u, /*retain_graph=*/true)[0];
}

at::Tensor rowwise(const at::Tensor& v, const std::function<at::Tensor(const at::Tensor&)>& product) {
  if (v.dim() == 1) return product(v);
  std::vector<at::Tensor> rows;
  for (const at::Tensor& row : v.unbind(0)) rows.push_back(product(row));
  return at::stack(rows);
}

at::Tensor leaf(const at::Tensor& value) { return value.detach().requires_grad_(true); }

}  // namespace bilevel
