#pragma once
#include <ATen/core/Tensor.h>

#include <string_view>

#include "bilevel/core/state.h"

namespace bilevel {

/// The factor on every step that a policy has put into the state; 1 unless it has.
double outer_scale(const State& state);

/// Throws Error, naming `caller`, where the gradient does not fit x.
void check_step(const at::Tensor& x, const at::Tensor& gradient, std::string_view caller);

}  // namespace bilevel
