#pragma once
#include <string>

#include "bilevel/oracle/autograd.h"
#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// The linearization of the optimality conditions at a solution y of an inner problem with constraints
/// (Problem::inner_constraints), given that of r at (x, y) as if y moved freely.
///
/// y_A lies on bounds or, by the l1 penalty, at zero; y_F moves freely on the surface E y = e; λ are the multipliers of E. As long
/// as the active set A stays what it is, y*(x) is the root of (Fiacco 1976; Amos & Kolter 2017)
///
///   r̂(x, y) = P (r + l1 ⊙ sign y + Eᵀλ) + [y − c(x)]_A + E_F⁺ (E_F y_F + E_A c_A(x) − e(x)),
///
/// where P projects on the directions in which y may move, {v : v_A = 0, E v = 0}, and c holds the bounds, or zeros. P and λ are those at
/// this point: their derivatives drop out at a root. ∂y r̂ = P ∂y r + (I − P), so only P ∂y r P needs a linear solver. `r` must
/// outlive it.
class ActiveSet final : public Linearization {
 public:
  /// `tolerance` is relative: to the largest |y| for a distance to a bound, to the largest |r|, |l1|, |Eᵀλ| for a multiplier.
  ActiveSet(const Problem& problem, const at::Tensor& x, const at::Tensor& y, Linearization& r, double tolerance);

  /// Why y* has no derivative here, in one sentence that names the coordinates; empty: it has. Where strict complementarity fails,
  /// a coordinate on a bound is held there by no force: it stays for a change of x one way, and leaves for the other.
  const std::string& kink() const { return kink_; }
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
  at::Tensor free_;           // 1 on F, 0 on A
  at::Tensor V_;              // orthonormal rows that span {E_Fᵀ μ}, [m, dy]; undefined without equalities
  Jacobian by_x_;             // r̂ apart from P r, as a function of x
  std::string kink_;
  int64_t held_count_ = 0;
};

}  // namespace bilevel
