//   σ = sign ∂F/∂x, 0 for NaN        η ← η · (shrink where σ · (the σ before) = −1, else 1)        x ← x − η σ
#include "bilevel/outer/sign.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/outer/step.h"

namespace bilevel {

std::vector<std::string> OuterSignOptions::violations() const {
  std::vector<std::string> found;
  if (lr.empty()) found.push_back("lr is empty: give one step, or one for each element of x");
  for (const double one : lr) {
    if (!(one >= 0 && std::isfinite(one))) found.push_back(fmt::format("lr = {} must be finite and at least 0", one));
  }
  if (!(shrink > 0 && shrink <= 1)) found.push_back(fmt::format("shrink = {} must lie in (0, 1]", shrink));
  return found;
}

void read(Section& section, OuterSignOptions& options) {
  if (!section.has("lr") || section.is_number("lr")) {
    section.read("lr", options.lr[0]);
  } else {
    section.read("lr", options.lr);
  }
  section.read("shrink", options.shrink);
  section.check(options.violations());
}

OuterSign::OuterSign(OuterSignOptions options) : options_(std::move(options)) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("OuterSign: {}.", fmt::join(violations, "; ")));
}

at::Tensor OuterSign::step(State& state, const at::Tensor& x, const at::Tensor& gradient) const {
  check_step(x, gradient, "OuterSign::step");
  const at::NoGradGuard no_grad;
  const int64_t given = static_cast<int64_t>(options_.lr.size());
  require(
      given == 1 || given == x.size(0),
      fmt::format("OuterSign::step: lr has {} steps; expected one, or one for each of the {} elements of x.", given, x.size(0)));
  const at::Tensor sign = gradient.nan_to_num(0.0).sign();
  at::Tensor step =
      state.has("outer.step") ? state.tensor("outer.step") : at::tensor(options_.lr, x.options()).expand_as(x).clone();
  if (state.has("outer.sign")) step = at::where(sign * state.tensor("outer.sign") < 0, step * options_.shrink, step);
  state.set("outer.sign", sign);
  state.set("outer.step", step);
  return x - outer_scale(state) * step * sign;
}

}  // namespace bilevel
