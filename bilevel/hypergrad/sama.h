#pragma once
#include "bilevel/core/config.h"
#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

struct SamaOptions {
  double radius = 1.0;  // α, the length of the perturbation of y: the paper's code takes 1
  std::vector<std::string> violations() const;
};
/// Keys: radius.
void read(Section& section, SamaOptions& options);

/// SAMA (Choe, Mehta, Ahn, Neiswanger, Xie, Strubell & Xing 2023): the identity for the inverse Hessian, but the last step's own
/// rule in place of the step size, and the cross product by a central difference of first derivatives,
///
///   ∂x f − [∂x g(y_T + ε v) − ∂x g(y_T − ε v)] / (2ε),     v = −(∂Φ/∂g)ᵀ ∂y f,  ε = radius/‖v‖
///
/// with ∂Φ/∂g the derivative of the last inner step by its gradient: −η I for plain gradient descent, and a diagonal for Adam,
/// the exact one, bias correction and ε included. (The paper's own code leaves both out and, for gradient descent, η too.) A
/// factor may be negative, and large where Adam's second moment is small. Three gradients and no second derivative.
class Sama final : public Estimator {
 public:
  explicit Sama(SamaOptions options = {});
  std::string_view name() const override { return "sama"; }
  TrajectoryPolicy trajectory() const override;
  BatchRoles batch_roles() const override { return {.hvps = false, .cross_product = true}; }
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override;
  Hypergradient estimate(const EstimatorInput& in) const override;

 private:
  SamaOptions options_;
};

}  // namespace bilevel
