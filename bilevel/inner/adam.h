#pragma once
#include "bilevel/core/config.h"
#include "bilevel/inner/update_rule.h"

namespace bilevel {

struct AdamRuleOptions {
  double lr = 1e-3;  // PyTorch's default; RuleSolver puts its own in its place
  double beta1 = 0.9, beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;
  bool decoupled = false;  // true: AdamW (Loshchilov & Hutter 2019), y shrinks by lr·w apart from the gradient
  bool amsgrad = false;
  std::vector<std::string> learned = {};  // hyperparameters that x determines

  static AdamRuleOptions adamw();  // PyTorch's defaults of AdamW: weight_decay = 0.01, decoupled
  std::vector<std::string> violations() const;
};
/// Keys: betas, eps, weight_decay, amsgrad.
void read(Section& section, AdamRuleOptions& options);

/// Adam and AdamW exactly as in torch.optim (Kingma & Ba 2015). Hyperparameters: lr, weight_decay. Derivatives in closed form.
///
/// At rest m = ∂y g and v = (∂y g)², so that AdamW rests where ∂y g/(|∂y g| + ε) + w y = 0: near a minimum of g with |yⱼ| ≤ 1/w.
/// `residual` is that times |∂y g| + ε, which has finite derivatives; that of |·| at 0 is taken as 0. AdamW with amsgrad rests
/// where the largest gradient of its trajectory says.
///
/// Where an element has never had a gradient (blank pixels), the step is 0 and so is its derivative: the true one is of the order
/// lr/eps there, which would overflow within a few steps only to be multiplied by zero.
class AdamRule final : public UpdateRule {
 public:
  explicit AdamRule(AdamRuleOptions options);
  std::string_view name() const override { return options_.decoupled ? "adamw" : "adam"; }
  int64_t slots() const override { return options_.amsgrad ? 3 : 2; }  // m, v, and the running maximum of v
  std::vector<std::string> hyperparameters() const override { return {"lr", "weight_decay"}; }
  std::vector<double> defaults() const override { return {options_.lr, options_.weight_decay}; }
  std::vector<std::string> learned() const override { return options_.learned; }
  RuleOutput step(const RuleInput& in) const override;
  RuleCotangent vjp(const RuleInput& in, const at::Tensor& y_bar, const Tensors& state_bar) const override;
  RuleOutput jvp(const RuleInput& in, const RuleCotangent& tangent) const override;
  at::Tensor residual(const at::Tensor& y, const at::Tensor& gradient, const Tensors& h) const override;
  at::Tensor preconditioner(const Tensors& state, int64_t steps) const override;
  double coupled_weight_decay() const override { return options_.decoupled ? 0.0 : options_.weight_decay; }
  bool stops_at_stationarity() const override;
  bool scale_free() const override { return true; }

 private:
  struct Parts;
  Parts parts(const RuleInput& in) const;
  bool decays() const;
  AdamRuleOptions options_;
};

}  // namespace bilevel
