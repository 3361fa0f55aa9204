#pragma once
#include "bilevel/core/config.h"
#include "bilevel/inner/coupled_rule.h"

namespace bilevel {

struct SgdRuleOptions {
  double lr = 1e-3;  // PyTorch's default; RuleSolver puts its own in its place
  double momentum = 0.0;
  double dampening = 0.0;
  double weight_decay = 0.0;  // coupled: w y is added to the gradient
  bool nesterov = false;
  std::vector<std::string> learned =
      {};  // hyperparameters that x determines: a learned momentum needs its buffer even where it is 0 now
  std::vector<std::string> violations() const;
};
/// Keys: momentum, dampening, weight_decay, nesterov.
void read(Section& section, SgdRuleOptions& options);

/// Stochastic gradient descent exactly as torch.optim.SGD: the momentum buffer starts as the first gradient, undamped.
///
/// Hyperparameters: lr, weight_decay without momentum; lr, momentum, dampening, weight_decay with it. Derivatives in closed form.
class SgdRule final : public CoupledRule {
 public:
  explicit SgdRule(SgdRuleOptions options);
  std::string_view name() const override { return "sgd"; }
  int64_t slots() const override { return buffered_ ? 1 : 0; }
  std::vector<std::string> hyperparameters() const override;
  std::vector<double> defaults() const override;
  RuleOutput step(const RuleInput& in) const override;
  RuleCotangent vjp(const RuleInput& in, const at::Tensor& y_bar, const Tensors& state_bar) const override;
  RuleOutput jvp(const RuleInput& in, const RuleCotangent& tangent) const override;
  bool scale_free() const override { return false; }

 private:
  SgdRuleOptions options_;
  bool buffered_;
};

}  // namespace bilevel
