#include "bilevel/inner/adamax.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/inner/rule_helpers.h"

// With G = g + w y and t the number of this step from 1:
//
//   m' = m + (1 − β₁)(G − m)
//   u' = max(β₂ u, |G| + ε)
//   y' = y − η / (1 − β₁ᵗ) · m' / u'

namespace bilevel {

std::vector<std::string> AdamaxRuleOptions::violations() const {
  return violations_of_moments(lr, beta1, beta2, eps, weight_decay);
}

void read(Section& section, AdamaxRuleOptions& options) {
  read_betas(section, options.beta1, options.beta2);
  section.read("eps", options.eps);
  section.read("weight_decay", options.weight_decay);
  section.check(options.violations());
}

AdamaxRule::AdamaxRule(AdamaxRuleOptions options)
    : CoupledRule(options.lr, options.weight_decay, options.learned), options_(std::move(options)) {
  const auto found = options_.violations();
  require(found.empty(), fmt::format("AdamaxRule: {}.", fmt::join(found, "; ")));
  check_learned(*this, options_.learned);
}

RuleOutput AdamaxRule::step(const RuleInput& in) const {
  const at::Tensor& lr = in.h[0];
  const double c1 = 1 - std::pow(options_.beta1, static_cast<double>(in.step + 1));
  const at::Tensor G = decayed(in);
  const at::Tensor m = in.state[0] + (1 - options_.beta1) * (G - in.state[0]);
  const at::Tensor older = options_.beta2 * in.state[1], now = G.abs() + options_.eps;
  const at::Tensor u = at::where(now > older, now, older);
  const at::Tensor live = u > options_.eps;  // β₂ u < ε + |0| from the first step on without a gradient
  // The value is PyTorch's everywhere; only the derivative is cut.
  const at::Tensor still = m.detach() / at::where(u > 0, u, at::ones_like(u)).detach();
  const at::Tensor d = at::where(live, m / at::where(live, u, at::ones_like(u)), still);
  return {in.y - lr / c1 * d, {m, u}};
}

at::Tensor AdamaxRule::preconditioner(const Tensors& state, int64_t) const {
  return 1 / at::clamp_min(state[1], std::max(options_.eps, 1e-300));
}

}  // namespace bilevel
