#pragma once
#include <limits>
#include <vector>

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

  at::Tensor apply(const at::Tensor& v, double eta) const;                                 // P_η(v); η = 0: onto C
  double penalty(const at::Tensor& y) const;                                               // h(y)
  at::Tensor residual(const at::Tensor& y, const at::Tensor& gradient, double eta) const;  // R_η(y)
  /// ‖A y − b‖: more than rounding only where C is empty.
  double infeasibility(const at::Tensor& y) const;

  bool is_separable() const { return !A_.defined(); }  // no equalities
  // Of a point y = P_η(v):
  at::Tensor free(const at::Tensor& y, double eta) const;                       // 1 for elements that move with v, else 0 [dy]
  at::Tensor penalised(const at::Tensor& y, const at::Tensor& gradient) const;  // the gradient of g + h, for free elements
  at::Tensor face(const at::Tensor& y, const at::Tensor& v) const;  // v, stopped at zero under a penalty, and at bounds

 private:
  at::Tensor separable(const at::Tensor& v, double eta) const;
  struct Limits {  // of an element
    double l1 = 0, lower = -std::numeric_limits<double>::infinity(), upper = std::numeric_limits<double>::infinity();
    double clamped(double y) const;
  };
  std::vector<Limits> limits_;  // [dy]
  at::Tensor A_, b_;            // [m, dy], [m]; undefined: none
};

}  // namespace bilevel
