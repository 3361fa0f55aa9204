#pragma once
#include "bilevel/core/config.h"
#include "bilevel/inner/coupled_rule.h"

namespace bilevel {

struct AdagradRuleOptions {
  double lr = 1e-2;  // PyTorch's default; RuleSolver puts its own in its place
  double lr_decay = 0.0;
  double weight_decay = 0.0;               // coupled: w y is added to the gradient
  double initial_accumulator_value = 0.0;  // of the sum of squares: a fresh state that is not zero
  double eps = 1e-10;
  std::vector<std::string> learned = {};  // hyperparameters that x determines
  std::vector<std::string> violations() const;
};
/// Keys: lr_decay, weight_decay, initial_accumulator_value, eps.
void read(Section& section, AdagradRuleOptions& options);

/// Adagrad exactly as in torch.optim (Duchi, Hazan & Singer 2011). Hyperparameters: lr, weight_decay.
///
/// Where an element has never had a gradient, the step is 0 and so is its derivative; the true one is infinite.
class AdagradRule final : public CoupledRule {
 public:
  explicit AdagradRule(AdagradRuleOptions options);
  std::string_view name() const override { return "adagrad"; }
  int64_t slots() const override { return 1; }
  RuleOutput step(const RuleInput& in) const override;
  at::Tensor preconditioner(const Tensors& state, int64_t steps) const override;
  Tensors fresh_state(const at::Tensor& y) const override;

 private:
  AdagradRuleOptions options_;
};

}  // namespace bilevel
