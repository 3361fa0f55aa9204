#pragma once
#include "bilevel/core/config.h"
#include "bilevel/linear/linear_solver.h"

namespace bilevel {

struct NeumannOptions {
  int64_t iterations = 20;  // products K with A, so K + 1 terms of the series
  double tolerance = 0.0;   // on ‖b − A q‖ / ‖b‖; 0: all the terms, as in the papers
  double damping = 0.0;     // solves (A + damping·I) q = b; use it where A may be indefinite
  double scale = 0.0;       // s, below 2 / (largest eigenvalue of A); 0: the operator's step_size, the inner step size
  std::vector<std::string> violations() const;
};
void read(Section& section, NeumannOptions& options);

/// The truncated Neumann series  q = q0 + s Σ_{i=0…K} (I − sA)^i (b − A q0)  (Lorraine, Vicol & Duvenaud 2020, Algorithm 3),
/// which is Richardson's iteration; with q0 = 0 and s the inner step size it equals unrolling K + 1 steps of gradient descent at
/// the solution.
///
/// The error shrinks by max |1 − s λ| over the eigenvalues λ of A with each term. Terms that grow end the solve with
/// Status::kDiverged and the iterate of the smallest residual. A q0 whose residual is not below that of zero is dropped.
class Neumann final : public LinearSolver {
 public:
  explicit Neumann(NeumannOptions options);
  std::string_view name() const override { return "neumann"; }
  /// Throws Error where neither the options nor A give a scale.
  LinearResult solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const override;

 private:
  NeumannOptions options_;
};

}  // namespace bilevel
