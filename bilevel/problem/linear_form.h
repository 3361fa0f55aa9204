#pragma once
#include <ATen/core/Tensor.h>

#include <functional>

namespace bilevel {

/// A loss as that of a generalised linear model with a ridge:
///
///     (1/n) Σ_i s_i(x) ℓ(W a_i + c, label_i) + ½ Σ_j λ_j(x) y_j²,   y = (W row by row, then c)
struct LinearForm {
  enum class Loss { kSquared, kLogistic, kSoftmax, kPoisson };
  at::Tensor features;  // a, [n, d], dense or CSR
  at::Tensor labels;    // [n]: int64 for softmax, else of the dtype of the features
  Loss loss = Loss::kSquared;
  int64_t outputs = 1;  // rows of W
  bool bias = true;
  std::function<at::Tensor(const at::Tensor& x)> sample_weights;  // s(x) [n], differentiable; empty: 1
  std::function<at::Tensor(const at::Tensor& x)> ridge;           // λ(x), scalar or [dy], differentiable; empty: 0
};

}  // namespace bilevel
