#pragma once
#include "bilevel/problem/inner_constraints.h"
#include "bilevel/problem/problem.h"

namespace bilevel {

/// The proximal map of what y is subject to, C = box ∩ {A y = b} and h(y) = Σ_j l1_j |y_j|:
///
///     P_η(v) = argmin over y in C of ½‖y − v‖² + η h(y)
///
/// Elementwise, and with equalities by a semismooth Newton method on their m multipliers (m is small). Elements at a bound are
/// that bound to the bit, and elements that the penalty makes zero are exactly 0. y is stationary for the inner problem where its
/// proximal-gradient residual R_η(y) = (y − P_η(y − η ∂y g))/η is 0: for some, hence for each η > 0; without constraints R_η = ∂y
/// g.
class ProximalMap {
 public:
  /// Throws Error where shapes do not fit, a lower bound is above its upper bound, or a penalty is negative.
  ProximalMap(const InnerConstraints& constraints, const at::Tensor& y_like);

  at::Tensor apply(const at::Tensor& v, double eta) const;                                 // P_η(v)
  double penalty(const at::Tensor& y) const;                                               // h(y)
  at::Tensor residual(const at::Tensor& y, const at::Tensor& gradient, double eta) const;  // R_η(y)
  /// ‖A y − b‖: more than rounding only where C is empty.
  double infeasibility(const at::Tensor& y) const;

 private:
  at::Tensor separable(const at::Tensor& v, double eta) const;
  at::Tensor lower_, upper_, l1_;  // [dy]; undefined: none
  at::Tensor A_, b_;               // [m, dy], [m]
};

}  // namespace bilevel
