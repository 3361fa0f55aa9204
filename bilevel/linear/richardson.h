#pragma once
#include "bilevel/core/config.h"
#include "bilevel/linear/linear_solver.h"

namespace bilevel {

struct RichardsonOptions {
  int64_t iterations = 100;  // a fixed point needs more steps than CG: it stops at the tolerance
  double tolerance = 1e-10;  // on ‖b − A q‖ / ‖b‖
  double damping = 0.0;      // solves (A + damping·I) q = b
  double scale = 0.0;        // s, below 2 / (largest eigenvalue of A); 0: the operator's step_size, the inner step size
  std::vector<std::string> violations() const;
};
void read(Section& section, RichardsonOptions& options);

/// The fixed point  q ← q + s (b − A q)  from q0, symmetric A or not (Richardson 1911; Grazzi et al. 2020, "fixed point").
///
/// Settles where all |1 − sλ| < 1, and the error then shrinks by the largest of them with each step. Every residual is the true
/// one. `neumann` is the same series with a fixed number of terms; this one stops at a tolerance. Residuals that grow end the
/// solve with Status::kDiverged and the iterate of the smallest residual. A q0 whose residual is not below that of zero is
/// dropped. The rows of a block are solved together.
class Richardson final : public LinearSolver {
 public:
  explicit Richardson(RichardsonOptions options);
  std::string_view name() const override { return "richardson"; }
  /// Throws Error where neither the options nor A give a scale.
  LinearResult solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const override;

 private:
  RichardsonOptions options_;
};

}  // namespace bilevel
