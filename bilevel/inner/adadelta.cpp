#include "bilevel/inner/adadelta.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/rule_helpers.h"

// With G = g + w y:
//
//   v' = ρ v + (1 − ρ) G²
//   d  = √(a + ε) / √(v' + ε) · G
//   a' = ρ a + (1 − ρ) d²
//   y' = y − η d

namespace bilevel {

std::vector<std::string> AdadeltaRuleOptions::violations() const {
  std::vector<std::string> found;
  if (!(lr >= 0)) found.push_back(fmt::format("lr = {} must be at least 0", lr));
  if (!(rho >= 0 && rho <= 1)) found.push_back(fmt::format("rho = {} must lie in [0, 1]", rho));
  if (!(eps > 0)) found.push_back(fmt::format("eps = {} must be positive: with 0 no step is ever taken", eps));
  if (!(weight_decay >= 0)) found.push_back(fmt::format("weight_decay = {} must be at least 0", weight_decay));
  return found;
}

void read(Section& section, AdadeltaRuleOptions& options) {
  section.read("rho", options.rho);
  section.read("eps", options.eps);
  section.read("weight_decay", options.weight_decay);
  section.check(options.violations());
}

AdadeltaRule::AdadeltaRule(AdadeltaRuleOptions options)
    : CoupledRule(options.lr, options.weight_decay, options.learned), options_(std::move(options)) {
  const auto found = options_.violations();
  require(found.empty(), fmt::format("AdadeltaRule: {}.", fmt::join(found, "; ")));
  check_learned(*this, options_.learned);
}

RuleOutput AdadeltaRule::step(const RuleInput& in) const {
  const at::Tensor& lr = in.h[0];
  const double rho = options_.rho, eps = options_.eps;
  const at::Tensor G = decayed(in);
  const at::Tensor v = rho * in.state[0] + (1 - rho) * G * G;
  const at::Tensor d = (in.state[1] + eps).sqrt() / (v + eps).sqrt() * G;
  return {in.y - lr * d, {v, rho * in.state[1] + (1 - rho) * d * d}};
}

at::Tensor AdadeltaRule::preconditioner(const Tensors& state, int64_t) const {
  return ((state[1] + options_.eps) / (state[0] + options_.eps)).sqrt();
}

}  // namespace bilevel
