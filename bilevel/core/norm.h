#pragma once
#include <ATen/core/Tensor.h>

namespace bilevel {

/// ‖v‖₂ as a number.
double norm_of(const at::Tensor& v);

/// ‖v‖∞ as a number; 0 where v is empty or undefined.
double max_norm_of(const at::Tensor& v);

}  // namespace bilevel
