#pragma once
#include <memory>

#include "bilevel/inner/update_rule.h"

namespace bilevel {

/// Any rule, with the gradient scaled down to at most `max_norm` in the 2-norm first, exactly as torch.nn.utils.clip_grad_norm_
/// does (Pascanu, Mikolov & Bengio 2013): g ← g · min(1, max_norm / (‖g‖ + 1e-6)). A weight decay comes after it.
///
/// The derivative of the scaling is exact. The norm is that of the whole of y, so the map is not elementwise.
class ClippedRule final : public UpdateRule {
 public:
  ClippedRule(std::unique_ptr<UpdateRule> rule, double max_norm);
  std::string_view name() const override { return rule_->name(); }
  int64_t slots() const override { return rule_->slots(); }
  std::vector<std::string> hyperparameters() const override { return rule_->hyperparameters(); }
  std::vector<double> defaults() const override { return rule_->defaults(); }
  std::vector<std::string> learned() const override { return rule_->learned(); }
  RuleOutput step(const RuleInput& in) const override;
  RuleCotangent vjp(const RuleInput& in, const at::Tensor& y_bar, const Tensors& state_bar) const override;
  RuleOutput jvp(const RuleInput& in, const RuleCotangent& tangent) const override;
  double coupled_weight_decay() const override { return rule_->coupled_weight_decay(); }
  bool stops_at_stationarity() const override { return rule_->stops_at_stationarity(); }
  /// The gradient itself where nothing beside g moves the optimum; else with the gradient clipped, for a decay can hold y where
  /// ‖∂y g‖ > max_norm.
  at::Tensor residual(const at::Tensor& y, const at::Tensor& gradient, const Tensors& h) const override;
  at::Tensor preconditioner(const Tensors& state, int64_t steps) const override { return rule_->preconditioner(state, steps); }
  bool scale_free() const override { return rule_->scale_free(); }
  Tensors fresh_state(const at::Tensor& y) const override { return rule_->fresh_state(y); }

 private:
  std::unique_ptr<UpdateRule> rule_;
  double max_norm_;
};

}  // namespace bilevel
