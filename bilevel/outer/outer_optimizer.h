#pragma once
#include <memory>
#include <string_view>

#include "bilevel/core/state.h"

namespace bilevel {

/// Moves x along a hypergradient. Its memory lives in the State under names that start with `outer.`; the entry `outer_scale`,
/// where present, multiplies every step.
class OuterOptimizer {
 public:
  virtual ~OuterOptimizer() = default;
  virtual std::string_view name() const = 0;
  virtual at::Tensor step(State& state, const at::Tensor& x, const at::Tensor& gradient) const = 0;
};

}  // namespace bilevel
