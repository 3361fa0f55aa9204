#pragma once
#include <string>

#include "bilevel/oracle/autograd.h"
#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// Problem::inner_constraints at one x, as vectors like y [dy], E [m, dy] and e [m]; undefined: none of that kind. Differentiable
/// by x.
struct ConstraintVectors {
  ConstraintVectors(const Problem& problem, const at::Tensor& x, const at::Tensor& y_like);
  ConstraintVectors detached() const;
  at::Tensor lower, upper, l1, E, e;

 private:
  ConstraintVectors() = default;
};

/// Which coordinates of y a constraint holds where they are, and on which side of zero an l1 penalty finds the others.
struct HeldSet {
  at::Tensor lower, upper, zero;  // at a bound, or at zero by the l1 penalty and no bound: bool [dy], never two at once
  at::Tensor sign;                // −1 or 1 where an l1 penalty is on a free coordinate, else 0 [dy]

  /// Those whose distance from a bound or from zero is at most `near`, an absolute length or [dy].
  static HeldSet at(const ConstraintVectors& c, const at::Tensor& y, const at::Tensor& near);
  at::Tensor held() const { return lower.logical_or(upper).logical_or(zero); }
  at::Tensor free() const { return held().logical_not().to(sign.scalar_type()); }  // 1 and 0
  /// Another set, with i moving freely, to the side where g falls; `z` is r + Eᵀλ there.
  HeldSet freed(const ConstraintVectors& c, int64_t i, double z) const;
  /// Another set, with i held by the constraint that y has crossed.
  HeldSet holding(const ConstraintVectors& c, int64_t i, double y) const;
  bool operator==(const HeldSet& other) const;
};

/// How far a point with one set is from having another one.
struct Margins {
  at::Tensor z;      // r + Eᵀλ, λ the multipliers of E by least squares on the free coordinates [dy]
  at::Tensor force;  // of what is held: how strongly [dy], in the units of r; negative: it would leave; ∞ on the others
  at::Tensor
      slack;  // of what is free: how far from the nearest bound, or from the kink of l1 [dy]; negative: beyond; ∞ on the others
  double scale = 0;  // the largest of |r|, l1, |Eᵀλ|
};
Margins margins(const ConstraintVectors& c, const HeldSet& set, const at::Tensor& y, const at::Tensor& residual);

/// E_F⁺ [dy, m], of the equalities on the free coordinates alone, E ⊙ free. Differentiable.
at::Tensor pseudo_inverse(const at::Tensor& E_free);

/// From where on a coordinate counts as held, and a multiplier as none.
struct KinkTolerance {
  double relative = 0;      // to the largest |y| for a distance, to the largest |r|, l1, |Eᵀλ| for a multiplier
  double stationarity = 0;  // ‖R_η‖ that the inner solve has left (inner/constraints.h): no multiplier is known better than that
  double step = 0;          // η: a coordinate that belongs on its bound is at most η ‖R_η‖ away from it

  /// About the root of the rounding unit: 1e-7 in double, 1e-4 in float.
  static double of(at::ScalarType dtype) { return dtype == at::kDouble ? 1e-7 : 1e-4; }
};

/// The linearization of the optimality conditions at a solution y of an inner problem with constraints
/// (Problem::inner_constraints), given that of r at (x, y) as if y moved freely.
///
/// y_A lies on bounds or, by the l1 penalty, at zero; y_F moves freely on the surface E y = e; λ are the multipliers of E. As
/// long as the active set A stays what it is, y*(x) is the root of (Fiacco 1976; Amos & Kolter 2017)
///
///   r̂(x, y) = P (r + l1 ⊙ sign y + Eᵀλ) + [y − c(x)]_A + E_F⁺ (E_F y_F + E_A c_A(x) − e(x)),
///
/// where P projects on the directions in which y may move, {v : v_A = 0, E v = 0}, and c holds the bounds, or zeros. P and λ are
/// those at this point: their derivatives drop out at a root. ∂y r̂ = P ∂y r + (I − P), so only P ∂y r P needs a linear solver.
/// `r` must outlive it.
class ActiveSet final : public Linearization {
 public:
  ActiveSet(const Problem& problem, const at::Tensor& x, const at::Tensor& y, Linearization& r, const KinkTolerance& tolerance);

  /// Why y* has no derivative here, in one sentence that names the coordinates; empty: it has. Where strict complementarity
  /// fails, a coordinate on a bound is held there by no force: it stays for a change of x one way, and leaves for the other.
  const std::string& kink() const { return kink_; }
  /// Why this may not be the active set of y*, in one sentence: multipliers below ten times what the inner solve has left; empty:
  /// they are above.
  const std::string& doubt() const { return doubt_; }
  at::Tensor project(const at::Tensor& v) const;  // P v, of rows too
  int64_t held() const { return held_count_; }    // coordinates in A

  at::Tensor value() override { return r_.value(); }
  at::Tensor residual() override;
  at::Tensor grad_x() override { return r_.grad_x(); }
  at::Tensor jvp_y(const at::Tensor& v) override;
  Vjp vjp(const at::Tensor& w) override;
  at::Tensor jvp_x(const at::Tensor& u) override;
  at::Tensor gauss_newton(const at::Tensor& v) override;
  bool symmetric() const override { return false; }  // r̂ is not, though P ∂y r P may be

 private:
  at::Tensor beside(const at::Tensor& v) const;  // v − P v
  Linearization& r_;
  at::Tensor free_;  // 1 on F, 0 on A
  at::Tensor V_;     // orthonormal rows that span {E_Fᵀ μ}, [m, dy]; undefined without equalities
  Jacobian by_x_;    // r̂ apart from P r, as a function of x
  std::string kink_, doubt_;
  int64_t held_count_ = 0;
};

}  // namespace bilevel
