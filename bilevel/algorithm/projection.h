#pragma once
#include <ATen/core/Tensor.h>

#include "bilevel/problem/problem.h"

namespace bilevel {

/// P(x), part by part, by the constraints on x.
at::Tensor project(const Problem& problem, const at::Tensor& x);

/// Throws Error where the initial x does not satisfy them.
void require_inside(const Problem& problem, const at::Tensor& x);

}  // namespace bilevel
