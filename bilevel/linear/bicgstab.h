#pragma once
#include "bilevel/core/config.h"
#include "bilevel/linear/linear_solver.h"

namespace bilevel {

struct BicgstabOptions {
  int64_t iterations = 50;           // products; two make a sweep
  double tolerance = 1e-10;          // on ‖b − A q‖ / ‖b‖; never finer than the rounding of the dtype
  double damping = 0.0;              // solves (A + damping·I) q = b
  int64_t true_residual_every = 20;  // products; the recursive residual drifts. Not read from TOML
  std::vector<std::string> violations() const;
};
void read(Section& section, BicgstabOptions& options);

/// Stabilised biconjugate gradients, for any regular A, with a fixed number of vectors (van der Vorst 1992).
///
/// The residual may rise on the way; the iterate of the smallest is returned. Where the recursion divides by zero it begins anew
/// from the residual, and where that does not help either (a skew-symmetric or singular A) the solve ends with Status::kSingular:
/// gmres is the remedy.
class Bicgstab final : public LinearSolver {
 public:
  explicit Bicgstab(BicgstabOptions options);
  std::string_view name() const override { return "bicgstab"; }
  LinearResult solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const override;

 private:
  BicgstabOptions options_;
};

}  // namespace bilevel
