#include "bilevel/inner/adagrad.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/rule_helpers.h"

// With G = g + w y and t the number of this step from 0:
//
//   v' = v + G²
//   y' = y − η / (1 + t · lr_decay) · G / (√v' + ε), 0 for the fraction where v' = 0

namespace bilevel {

std::vector<std::string> AdagradRuleOptions::violations() const {
  std::vector<std::string> found;
  if (!(lr >= 0)) found.push_back(fmt::format("lr = {} must be at least 0", lr));
  if (!(lr_decay >= 0)) found.push_back(fmt::format("lr_decay = {} must be at least 0", lr_decay));
  if (!(weight_decay >= 0)) found.push_back(fmt::format("weight_decay = {} must be at least 0", weight_decay));
  if (!(initial_accumulator_value >= 0)) {
    found.push_back(fmt::format("initial_accumulator_value = {} must be at least 0", initial_accumulator_value));
  }
  if (!(eps >= 0)) found.push_back(fmt::format("eps = {} must be at least 0", eps));
  return found;
}

void read(Section& section, AdagradRuleOptions& options) {
  section.read("lr_decay", options.lr_decay);
  section.read("weight_decay", options.weight_decay);
  section.read("initial_accumulator_value", options.initial_accumulator_value);
  section.read("eps", options.eps);
  section.check(options.violations());
}

AdagradRule::AdagradRule(AdagradRuleOptions options)
    : CoupledRule(options.lr, options.weight_decay, options.learned), options_(std::move(options)) {
  const auto found = options_.violations();
  require(found.empty(), fmt::format("AdagradRule: {}.", fmt::join(found, "; ")));
  check_learned(*this, options_.learned);
}

Tensors AdagradRule::fresh_state(const at::Tensor& y) const { return {at::full_like(y, options_.initial_accumulator_value)}; }

RuleOutput AdagradRule::step(const RuleInput& in) const {
  const at::Tensor& lr = in.h[0];
  const at::Tensor G = decayed(in);
  const at::Tensor v = in.state[0] + G * G;
  const at::Tensor live = v > 0;
  const at::Tensor d = at::where(live, G / at::where(live, finite_sqrt(v) + options_.eps, at::ones_like(v)), at::zeros_like(G));
  return {in.y - lr / (1 + static_cast<double>(in.step) * options_.lr_decay) * d, {v}};
}

at::Tensor AdagradRule::preconditioner(const Tensors& state, int64_t) const { return 1 / (state[0].sqrt() + options_.eps); }

}  // namespace bilevel
