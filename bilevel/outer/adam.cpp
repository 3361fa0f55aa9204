//   d = ∂F/∂x + w x      m ← β₁ m + (1 − β₁) d      v ← β₂ v + (1 − β₂) d²      u = v, or the largest v so far (amsgrad)
//   shared: the mean of d² stands for each d²
//   x ← x − γ / (1 − β₁ᵗ) · m / (√u / √(1 − β₂ᵗ) + ε)
#include "bilevel/outer/adam.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/outer/step.h"

namespace bilevel {

std::vector<std::string> OuterAdamOptions::violations() const {
  std::vector<std::string> found;
  if (!(lr >= 0 && std::isfinite(lr))) found.push_back(fmt::format("lr = {} must be finite and at least 0", lr));
  if (betas.size() != 2 || !(betas[0] >= 0 && betas[0] < 1 && betas[1] >= 0 && betas[1] < 1)) {
    found.push_back(fmt::format("betas = [{}] must be two numbers in [0, 1)", fmt::join(betas, ", ")));
  }
  if (!(eps >= 0 && std::isfinite(eps))) found.push_back(fmt::format("eps = {} must be at least 0", eps));
  if (!(weight_decay >= 0 && std::isfinite(weight_decay))) {
    found.push_back(fmt::format("weight_decay = {} must be at least 0", weight_decay));
  }
  return found;
}

void read(Section& section, OuterAdamOptions& options) {
  section.read("lr", options.lr);
  section.read("betas", options.betas);
  section.read("eps", options.eps);
  section.read("weight_decay", options.weight_decay);
  section.read("amsgrad", options.amsgrad);
  section.read("shared", options.shared);
  section.check(options.violations());
}

OuterAdam::OuterAdam(OuterAdamOptions options) : options_(std::move(options)) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("OuterAdam: {}.", fmt::join(violations, "; ")));
}

at::Tensor OuterAdam::step(State& state, const at::Tensor& x, const at::Tensor& gradient) const {
  check_step(x, gradient, "OuterAdam::step");
  const at::NoGradGuard no_grad;
  const double beta1 = options_.betas[0], beta2 = options_.betas[1];
  const auto moment = [&](const std::string& entry) { return state.has(entry) ? state.tensor(entry) : at::zeros_like(x); };

  const int64_t t = state.has("outer.step") ? state.integer("outer.step") + 1 : 1;
  const at::Tensor d = options_.weight_decay == 0 ? gradient : gradient.add(x, options_.weight_decay);
  const at::Tensor m = moment("outer.exp_avg").lerp(d, 1 - beta1);
  const at::Tensor square = options_.shared ? d.square().mean().expand_as(d) : d.square();
  const at::Tensor v = moment("outer.exp_avg_sq").mul(beta2).add(square, 1 - beta2);
  state.set("outer.step", t);
  state.set("outer.exp_avg", m);
  state.set("outer.exp_avg_sq", v);
  at::Tensor u = v;
  if (options_.amsgrad) {
    u = at::maximum(moment("outer.max_exp_avg_sq"), v);
    state.set("outer.max_exp_avg_sq", u);
  }
  const double correction1 = 1 - std::pow(beta1, t), correction2 = 1 - std::pow(beta2, t);
  const at::Tensor denominator = u.sqrt().div(std::sqrt(correction2)).add(options_.eps);
  return x.addcdiv(m, denominator, -options_.lr * outer_scale(state) / correction1);
}

}  // namespace bilevel
