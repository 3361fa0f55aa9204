#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace bilevel {

inline bool contains(const std::vector<std::string>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// The cotangent of a hyperparameter h in h ⊙ a, given a and that of the product: summed where h is a scalar.
inline at::Tensor hyperparameter_bar(const at::Tensor& h, const at::Tensor& a, const at::Tensor& bar) {
  return h.dim() == 0 ? a.dot(bar) : a.mul(bar);
}

}  // namespace bilevel
