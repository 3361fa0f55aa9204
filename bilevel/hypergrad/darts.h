#pragma once
#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

/// DARTS (Liu, Simonyan & Yang 2019, eq. 7–8): `t1-t2` with its cross product by a central difference of first derivatives,
///
///   ∂x f(y_T) − η [∂x g(y_{T−1} + ε b) − ∂x g(y_{T−1} − ε b)] / (2ε),     b = ∂y f(y_T),  ε = radius/‖b‖
///
/// Two gradients ∂x g and no second derivative: the choice for losses without a double backward. Differentiates what `t1-t2`
/// does, up to the difference's error: of order radius² for smooth losses, about 1 % across the kinks of ReLU.
class Darts final : public Estimator {
 public:
  /// `radius` = 0.01 is the paper's; in double 1e-3 is more exact, in float it drowns in rounding.
  explicit Darts(double radius = 0.01);
  std::string_view name() const override { return "darts"; }
  BatchRoles batch_roles() const override { return {.hvps = false, .cross_product = true}; }
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override;
  Hypergradient estimate(const EstimatorInput& in) const override;

 private:
  double radius_;
};

}  // namespace bilevel
