#include "bilevel/outer/step.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bilevel/core/error.h"

namespace bilevel {

double outer_scale(const State& state) { return state.has("outer_scale") ? state.number("outer_scale") : 1.0; }

void check_step(const at::Tensor& x, const at::Tensor& gradient, std::string_view caller) {
  require(x.defined() && gradient.defined(), fmt::format("{}: x or the gradient is undefined; give both.", caller));
  require(x.sizes() == gradient.sizes() && x.scalar_type() == gradient.scalar_type(),
          fmt::format("{}: the gradient is {} [{}], expected {} [{}] like x.", caller, toString(gradient.scalar_type()),
                      fmt::join(gradient.sizes(), ", "), toString(x.scalar_type()), fmt::join(x.sizes(), ", ")));
}

}  // namespace bilevel
