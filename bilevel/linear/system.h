#pragma once
#include <functional>
#include <string_view>
#include <vector>

#include "bilevel/linear/linear_solver.h"

namespace bilevel {

/// The systems (A + δI) q = b of one or several right-hand sides as the solvers of this folder see them: each b scaled to length
/// 1, so that what they compute neither overflows nor underflows and does not depend on the scale of b, and those left out that
/// need no solver, because b is zero or not finite.
class System {
 public:
  /// Throws Error, naming `caller`, where A, b and q0 do not fit each other.
  System(const Operator& A, double damping, const at::Tensor& b, const at::Tensor& q0, std::string_view caller);

  int64_t rows() const { return static_cast<int64_t>(kept_.size()); }  // right-hand sides that are left
  const at::Tensor& b() const { return b_; }                           // [rows, d]
  const at::Tensor& q0() const { return q0_; }                         // [rows, d]; undefined where there is none
  const Operator& A() const { return A_; }
  double damping() const { return damping_; }
  double epsilon() const;  // rounding of the dtype

  // Without a graph. v is [d], or rows [k, d] where the products take blocks or k = 1. What comes back may share v's memory.
  // With damping the sum goes into `sum` where one of v's shape is given, and into new memory otherwise.
  at::Tensor apply(const at::Tensor& v, at::Tensor sum = {}) const;  // (A + δI) v
  at::Tensor apply_transposed(const at::Tensor& v) const;            // (A + δI)ᵀ v

  /// Where each row begins, in memory of its own: at q0 where that has a smaller residual than zero, else at zero.
  struct Start {
    at::Tensor q, r;                // r = b − (A + δI) q, [rows, d]
    std::vector<double> residuals;  // lengths of r
  };
  Start start() const;

  /// The message where the residual stopped falling at the rounding of the dtype.
  std::string stopped_by_rounding(double residual) const;

  /// The result for the b that was given, from those of the rows, whose solutions are [d] and in the scale of b().
  LinearResult result(std::vector<LinearResult> rows) const;
  /// The same for a solver that knows one right-hand side at a time. b is [d], q0 [d] or undefined.
  LinearResult each(const std::function<LinearResult(const at::Tensor& b, const at::Tensor& q0)>& solve) const;

 private:
  at::Tensor product(const std::function<at::Tensor(const at::Tensor&)>& of, const at::Tensor& v, at::Tensor sum) const;
  const Operator& A_;
  double damping_;
  at::Tensor b_, q0_;
  bool block_;                            // b came as [k, d]
  std::vector<double> largest_, length_;  // of each b given, ‖b‖ = largest · length; apart, because the product may overflow
  std::vector<int64_t> kept_;             // which of them are rows here
};

/// Says how far a solve came in how many iterations, where its message is still empty.
void describe(LinearResult& result);

/// A v for each row of v, as blocks where A takes them.
at::Tensor products(const Operator& A, const at::Tensor& v);

/// Leaves of each tensor (where it is defined) the rows `left` alone.
void keep_rows(const std::vector<int64_t>& left, std::initializer_list<at::Tensor*> tensors);

/// A step of q ← q + s (b − A q): `scale` where it is positive, else A.step_size, a scalar or [d]. Throws Error, naming `caller`,
/// where neither gives one.
at::Tensor step_scale(double scale, const Operator& A, const at::Tensor& b, std::string_view caller);

/// ⟨a_i, b_i⟩ of each row [k, 1].
at::Tensor row_dots(const at::Tensor& a, const at::Tensor& b);

/// The numbers of a tensor, or of several, in one synchronisation.
std::vector<double> numbers(const at::Tensor& values);
std::vector<double> numbers(std::initializer_list<at::Tensor> values);

/// The smallest eigenvalue of the symmetric tridiagonal matrix with that diagonal and the squares of that off-diagonal (one
/// shorter, or as long and its last entry not used), by Sturm's bisection.
double smallest_eigenvalue(const std::vector<double>& diagonal, const std::vector<double>& squares);

/// The violations that the options common to all iterative solvers may have.
void check_common(int64_t iterations, int64_t least, double tolerance, double damping, std::vector<std::string>& found);

}  // namespace bilevel
