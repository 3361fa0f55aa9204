#pragma once
#include "bilevel/core/config.h"
#include "bilevel/inner/coupled_rule.h"

namespace bilevel {

struct AdamaxRuleOptions {
  double lr = 2e-3;  // PyTorch's default; RuleSolver puts its own in its place
  double beta1 = 0.9, beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0.0;              // coupled: w y is added to the gradient
  std::vector<std::string> learned = {};  // hyperparameters that x determines
  std::vector<std::string> violations() const;
};
/// Keys: betas, eps, weight_decay.
void read(Section& section, AdamaxRuleOptions& options);

/// Adamax exactly as in torch.optim (Kingma & Ba 2015, algorithm 2). Hyperparameters: lr, weight_decay.
///
/// Derivatives: that of |·| at 0 is 0; where β₂ u and |G| + ε are equal, that of β₂ u; and where an element has never had a
/// gradient, the step is 0 and so is its derivative, for the true one is of the order lr/eps.
class AdamaxRule final : public CoupledRule {
 public:
  explicit AdamaxRule(AdamaxRuleOptions options);
  std::string_view name() const override { return "adamax"; }
  int64_t slots() const override { return 2; }  // m, and the largest |G| so far, fading
  RuleOutput step(const RuleInput& in) const override;
  at::Tensor preconditioner(const Tensors& state, int64_t steps) const override;

 private:
  AdamaxRuleOptions options_;
};

}  // namespace bilevel
