#pragma once
#include <ATen/core/Tensor.h>

namespace bilevel {

/// ‖v‖₂ as a number.
double norm_of(const at::Tensor& v);

}  // namespace bilevel
