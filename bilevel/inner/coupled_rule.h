#pragma once
#include <string>
#include <vector>

#include "bilevel/inner/update_rule.h"

namespace bilevel {

/// What the rules have in common that add w y to the gradient: G = ∂y g + w y, at rest 0.
///
/// Hyperparameters: lr, …, weight_decay. A product with w is left out where w is 0 for good and no graph wants its derivative.
/// All but sgd adapt the length of their steps.
class CoupledRule : public UpdateRule {
 public:
  std::vector<std::string> hyperparameters() const override { return {"lr", "weight_decay"}; }
  std::vector<double> defaults() const override { return {lr_, weight_decay_}; }
  std::vector<std::string> learned() const override { return learned_; }
  at::Tensor residual(const at::Tensor& y, const at::Tensor& gradient, const Tensors& h) const override;
  double coupled_weight_decay() const override { return weight_decay_; }
  bool scale_free() const override { return true; }

 protected:
  CoupledRule(double lr, double weight_decay, std::vector<std::string> learned);
  bool decays() const;                            // w is not 0 for good
  at::Tensor decayed(const RuleInput& in) const;  // G

  double lr_, weight_decay_;
  std::vector<std::string> learned_;
};

}  // namespace bilevel
