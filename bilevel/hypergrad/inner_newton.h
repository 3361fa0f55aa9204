#pragma once
#include <cstdint>
#include <memory>

#include "bilevel/hypergrad/estimator.h"
#include "bilevel/linear/cg.h"

// Newton's method on the inner problem, for certificates: they need y* far better than a user's inner solve finds it.
namespace bilevel {

/// r(x, y) on the full batch, what the inner solver drives to zero (hypergrad/optimality.h), and its products at one point.
///
/// r comes from Oracle::inner and not from the linearization, which is made when a product is first asked for: a solve then ends
/// where the loss says, and not where a damaged linearization would have it.
class InnerPlace {
 public:
  InnerPlace(const EstimatorInput& in, at::Tensor x_at, at::Tensor y_at);
  at::Tensor jvp_y(const at::Tensor& v) const { return linearization().jvp_y(v); }
  at::Tensor jvp_x(const at::Tensor& u) const { return linearization().jvp_x(u); }
  Vjp vjp(const at::Tensor& w) const { return linearization().vjp(w); }
  bool symmetric() const { return linearization().symmetric(); }
  at::Tensor matrix() const;  // ∂y r [dy, dy] in double
  at::Tensor linearized_r() const {
    return linearization().residual();
  }  // as the linearization has it: the same as r to rounding

  const at::Tensor x, y;
  at::Tensor r;

 private:
  Linearization& linearization() const;
  const EstimatorInput& in_;
  Batch batch_;
  mutable std::unique_ptr<Linearization> given_, linearization_;  // of the problem's own r; of the solver's, where that differs
  mutable at::Tensor scale_;
};

/// (∂y r)⁻¹ v and (∂y r)⁻ᵀ v around one place.
class InnerInverse {
 public:
  virtual ~InnerInverse() = default;
  /// To this relative residual, where it is not exact to rounding anyway and the products suffice.
  virtual at::Tensor apply(const at::Tensor& v, double tolerance) const = 0;
  virtual at::Tensor apply_transposed(const at::Tensor& v, double tolerance) const = 0;
};

struct InnerNewtonOptions {
  int64_t dense_dim = 200;  // up to this many inner variables ∂y r is formed and factorised; beyond: cg, for a symmetric one
  int64_t products = 100;   // of one solve by cg
  int64_t steps = 6;        // two or three from where an inner solve usually stops
};

class InnerNewton {
 public:
  InnerNewton(const EstimatorInput& in, InnerNewtonOptions options);
  /// Goes from (x, y) on until r is rounding or, with a target, ‖r‖ ≤ target · ‖r(x, y)‖. False: it did not get there.
  bool solve(const at::Tensor& x, const at::Tensor& y, double target = 0.0);

  bool dense() const { return dense_; }
  const InnerPlace& place() const { return *place_; }  // where `solve` has ended
  /// From a place near by.
  const InnerInverse& inverse() const { return *inverse_; }
  /// Makes `inverse` that of `place()`.
  void renew();
  // Dense and symmetric, of the last renewal: the eigenvalues, rising, and vectors (columns). Undefined where they are not
  // finite.
  const at::Tensor& eigenvalues() const { return eigenvalues_; }
  const at::Tensor& eigenvectors() const { return eigenvectors_; }
  const at::Tensor& matrix() const { return J_; }  // dense: of the last renewal
  /// Directions [dy, k] without curvature along which nothing happens: neither r, nor what it owes to x, nor f. Such are the
  /// common shift of all biases of a softmax, and weights of features that are always zero. The dense inverse leaves them alone;
  /// undefined: none.
  const at::Tensor& idle() const { return idle_; }
  bool is_idle(const at::Tensor& directions) const;
  double rounding_of_r() const { return sigma_; }  // at place()
  /// place() with y moved by some units in the last place.
  std::unique_ptr<InnerPlace> beside(const InnerPlace& place) const;

 private:
  double rounding_at(const InnerPlace& place) const;
  const EstimatorInput& in_;
  InnerNewtonOptions options_;
  bool dense_, renewed_ = false;
  double sigma_ = 0;
  std::unique_ptr<InnerPlace> place_;
  std::unique_ptr<InnerPlace> held_;  // what the matrix-free inverse refers to
  std::unique_ptr<InnerInverse> inverse_;
  at::Tensor J_, eigenvalues_, eigenvectors_, idle_;
};

/// Rounding is sampled, and one sample stands for its size.
constexpr double kRoundingSafety = 3.0;
double rounding_unit(const at::Tensor& t);

}  // namespace bilevel
