#pragma once
#include "bilevel/core/config.h"
#include "bilevel/inner/coupled_rule.h"

namespace bilevel {

struct RmspropRuleOptions {
  double lr = 1e-2;  // PyTorch's default; RuleSolver puts its own in its place
  double alpha = 0.99;
  double eps = 1e-8;
  double weight_decay = 0.0;  // coupled: w y is added to the gradient
  double momentum = 0.0;
  bool centered = false;                  // divides by the standard deviation of the gradients instead of their root mean square
  std::vector<std::string> learned = {};  // hyperparameters that x determines
  std::vector<std::string> violations() const;
};
/// Keys: alpha, eps, weight_decay, momentum, centered.
void read(Section& section, RmspropRuleOptions& options);

/// RMSprop exactly as in torch.optim (Tieleman & Hinton 2012, lecture 6.5; centred: Graves 2013, eqs. 38–45).
///
/// Hyperparameters: lr, weight_decay without momentum; lr, momentum, weight_decay with it. Where an element has never had a
/// gradient, and where the variance of a centred one is 0, the derivative of the root is taken as 0; the true one is infinite.
/// A variance that is negative by rounding counts as 0, where PyTorch gives NaN.
class RmspropRule final : public CoupledRule {
 public:
  explicit RmspropRule(RmspropRuleOptions options);
  std::string_view name() const override { return "rmsprop"; }
  int64_t slots() const override { return 1 + (options_.centered ? 1 : 0) + (buffered_ ? 1 : 0); }
  std::vector<std::string> hyperparameters() const override;
  std::vector<double> defaults() const override;
  RuleOutput step(const RuleInput& in) const override;
  at::Tensor preconditioner(const Tensors& state, int64_t steps) const override;

 private:
  RmspropRuleOptions options_;
  bool buffered_;
};

}  // namespace bilevel
