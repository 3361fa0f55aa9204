#include "bilevel/inner/coupled_rule.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/rule_helpers.h"

namespace bilevel {

void check_learned(const UpdateRule& rule, const std::vector<std::string>& learned) {
  const auto known = rule.hyperparameters();
  for (const auto& name : learned) {
    require(contains(known, name), fmt::format("The rule {} has no \"{}\" that x could determine; its hyperparameters are {}.",
                                               rule.name(), name, one_of(known)));
  }
}

at::Tensor finite_sqrt(const at::Tensor& u) {
  const at::Tensor positive = u > 0;
  return at::where(positive, at::where(positive, u, at::ones_like(u)).sqrt(), at::zeros_like(u));
}

CoupledRule::CoupledRule(double lr, double weight_decay, std::vector<std::string> learned)
    : lr_(lr), weight_decay_(weight_decay), learned_(std::move(learned)) {}

at::Tensor CoupledRule::residual(const at::Tensor& y, const at::Tensor& gradient, const Tensors& h) const {
  return weight_decay_ != 0 || contains(learned_, "weight_decay") ? gradient + h.back() * y : gradient;
}

at::Tensor CoupledRule::decayed(const RuleInput& in) const {
  const bool decays = weight_decay_ != 0 || contains(learned_, "weight_decay") || in.h.back().requires_grad();
  return decays ? in.gradient + in.h.back() * in.y : in.gradient;
}

}  // namespace bilevel
