#pragma once
#include <ATen/core/Tensor.h>

namespace bilevel {

/// y += a x in place, x and y of one shape, dtype and device. Short vectors on the CPU are done without the dispatcher, which
/// costs more than they do.
void add_scaled(const at::Tensor& y, double a, const at::Tensor& x);
/// y *= a, likewise.
void scale(const at::Tensor& y, double a);

}  // namespace bilevel
