#pragma once
#include "bilevel/linear/system.h"

namespace bilevel {

/// The iterate of the smallest residual in a solve for one right-hand side of length 1, and the result that grows with it.
class BestIterate {
 public:
  /// Starts at q0, or at zero where there is none or its residual is not below that of zero.
  BestIterate(const System& system, const at::Tensor& b, const at::Tensor& q0);

  const at::Tensor& q() const { return q_; }
  double residual() const { return residual_; }
  at::Tensor start() const { return r_; }  // b − A q at the start, for the solver to write over

  /// Takes q where its residual is smaller. A residual that is not computed from q itself is checked at the end.
  void offer(const at::Tensor& q, double residual, bool exact);
  /// Checks the residual where that is needed, and writes status and message unless the solver did.
  LinearResult finish(double tolerance);

  LinearResult result;

 private:
  const System& system_;
  at::Tensor b_, q_, r_;
  double residual_ = 1;
  bool exact_ = true;
};

}  // namespace bilevel
