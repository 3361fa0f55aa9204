#pragma once
#include <ATen/core/Tensor.h>

namespace bilevel {

/// What y is subject to, beside minimising g. Undefined tensors: nothing of that kind. All may depend on x, by differentiable
/// operations.
///
///     lower ≤ y ≤ upper,   equality · y = equality_rhs,   g is minimised together with Σ_j l1_j |y_j|
struct InnerConstraints {
  at::Tensor lower = {}, upper = {};  // scalars or [dy]
  at::Tensor equality = {};           // [m, dy]
  at::Tensor equality_rhs = {};       // [m]
  at::Tensor l1 = {};                 // ≥ 0, scalar or [dy]
};

}  // namespace bilevel
