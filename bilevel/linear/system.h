#pragma once
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bilevel/linear/linear_solver.h"

namespace bilevel {

/// The system (A + δI) q = b with ‖b‖ scaled to 1, as the solvers of this folder see it: what they compute then neither overflows
/// nor underflows, and does not depend on the scale of b.
class System {
 public:
  /// Throws Error, naming `caller`, where A, b and q0 do not fit each other.
  System(const Operator& A, double damping, const at::Tensor& b, const at::Tensor& q0, std::string_view caller);

  /// The answer that needs no solver: b is zero, or not finite.
  std::optional<LinearResult> trivial() const;

  const at::Tensor& b() const { return b_; }
  const at::Tensor& q0() const { return q0_; }     // undefined where there is none
  double epsilon() const;                          // rounding of the dtype
  at::Tensor apply(const at::Tensor& v) const;     // (A + δI) v, without a graph
  at::Tensor residual(const at::Tensor& q) const;  // b − (A + δI) q
  at::Tensor unscaled(const at::Tensor& q) const;  // in the scale of the b that was given

 private:
  const Operator& A_;
  double damping_;
  at::Tensor b_, q0_;
  double largest_ = 0, length_ = 0;  // ‖b‖ = largest · length; apart, because the product may overflow
};

/// The values of scalar tensors, in one synchronisation.
std::vector<double> numbers(std::initializer_list<at::Tensor> scalars);

}  // namespace bilevel
