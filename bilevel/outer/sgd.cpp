//   d = ∂F/∂x + w x        m ← μ m + (1 − τ) d,  but m = d at first
//   x ← x − γ m            Nesterov: x ← x − γ (d + μ m)
#include "bilevel/outer/sgd.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/outer/step.h"

namespace bilevel {

std::vector<std::string> OuterSgdOptions::violations() const {
  std::vector<std::string> found;
  if (!(lr >= 0 && std::isfinite(lr))) found.push_back(fmt::format("lr = {} must be finite and at least 0", lr));
  if (!(momentum >= 0 && std::isfinite(momentum))) found.push_back(fmt::format("momentum = {} must be at least 0", momentum));
  if (!std::isfinite(dampening)) found.push_back(fmt::format("dampening = {} must be finite", dampening));
  if (!(weight_decay >= 0 && std::isfinite(weight_decay))) {
    found.push_back(fmt::format("weight_decay = {} must be at least 0", weight_decay));
  }
  if (nesterov && (momentum == 0 || dampening != 0)) {
    found.push_back(fmt::format("nesterov = true needs momentum > 0 and dampening = 0, not {} and {}", momentum, dampening));
  }
  return found;
}

void read(Section& section, OuterSgdOptions& options) {
  section.read("lr", options.lr);
  section.read("momentum", options.momentum);
  section.read("dampening", options.dampening);
  section.read("weight_decay", options.weight_decay);
  section.read("nesterov", options.nesterov);
  section.check(options.violations());
}

OuterSgd::OuterSgd(OuterSgdOptions options) : options_(options) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("OuterSgd: {}.", fmt::join(violations, "; ")));
}

at::Tensor OuterSgd::step(State& state, const at::Tensor& x, const at::Tensor& gradient) const {
  check_step(x, gradient, "OuterSgd::step");
  const at::NoGradGuard no_grad;
  at::Tensor d = options_.weight_decay == 0 ? gradient : gradient.add(x, options_.weight_decay);
  if (options_.momentum != 0) {
    const std::string entry = "outer.momentum_buffer";
    const at::Tensor m = state.has(entry) ? state.tensor(entry).mul(options_.momentum).add(d, 1 - options_.dampening) : d.clone();
    state.set(entry, m);
    d = options_.nesterov ? d.add(m, options_.momentum) : m;
  }
  return x.sub(d, options_.lr * outer_scale(state));
}

}  // namespace bilevel
