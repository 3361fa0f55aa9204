#pragma once
#include <ATen/core/Tensor.h>

namespace bilevel {

// Arithmetic of flat vectors. Short ones on the CPU are done without LibTorch's dispatcher, which costs more than they do; their
// sums are taken in double.

/// aᵀb as a number, a and b of one shape, dtype and device.
double dot_of(const at::Tensor& a, const at::Tensor& b);

/// ‖v‖₂ as a number.
double norm_of(const at::Tensor& v);

/// ‖v‖∞ as a number; 0 where v is empty or undefined.
double max_norm_of(const at::Tensor& v);

/// y += a x in place, x and y of one shape, dtype and device.
void add_scaled(const at::Tensor& y, double a, const at::Tensor& x);

/// y *= a in place.
void scale(const at::Tensor& y, double a);

/// x + a y, a new vector without a graph.
at::Tensor sum_of(const at::Tensor& x, double a, const at::Tensor& y);

}  // namespace bilevel
