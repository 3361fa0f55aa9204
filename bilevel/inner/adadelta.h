#pragma once
#include "bilevel/core/config.h"
#include "bilevel/inner/coupled_rule.h"

namespace bilevel {

struct AdadeltaRuleOptions {
  double lr = 1.0;  // PyTorch's default; RuleSolver puts its own in its place
  double rho = 0.9;
  double eps = 1e-6;                      // sets the length of the first steps; with 0 none would ever be taken
  double weight_decay = 0.0;              // coupled: w y is added to the gradient
  std::vector<std::string> learned = {};  // hyperparameters that x determines
  std::vector<std::string> violations() const;
};
/// Keys: rho, eps, weight_decay.
void read(Section& section, AdadeltaRuleOptions& options);

/// Adadelta exactly as in torch.optim (Zeiler 2012). Hyperparameters: lr, weight_decay. Its steps hardly depend on lr's usual
/// scale: lr = 1 is the paper's method. Smooth everywhere, for ε stands under the roots.
class AdadeltaRule final : public CoupledRule {
 public:
  explicit AdadeltaRule(AdadeltaRuleOptions options);
  std::string_view name() const override { return "adadelta"; }
  int64_t slots() const override { return 2; }  // mean squares of the gradients and of the steps
  RuleOutput step(const RuleInput& in) const override;
  at::Tensor preconditioner(const Tensors& state, int64_t steps) const override;

 private:
  AdadeltaRuleOptions options_;
};

}  // namespace bilevel
