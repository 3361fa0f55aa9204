#include "bilevel/inner/coupled_rule.h"

#include <ATen/ATen.h>

#include "bilevel/inner/rule_helpers.h"

namespace bilevel {

CoupledRule::CoupledRule(double lr, double weight_decay, std::vector<std::string> learned)
    : lr_(lr), weight_decay_(weight_decay), learned_(std::move(learned)) {}

bool CoupledRule::decays() const { return weight_decay_ != 0 || contains(learned_, "weight_decay"); }

at::Tensor CoupledRule::residual(const at::Tensor& y, const at::Tensor& gradient, const Tensors& h) const {
  return decays() ? gradient + h.back() * y : gradient;
}

at::Tensor CoupledRule::decayed(const RuleInput& in) const {
  return decays() || in.h.back().requires_grad() ? in.gradient + in.h.back() * in.y : in.gradient;
}

}  // namespace bilevel
