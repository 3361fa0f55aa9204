#pragma once
#include "bilevel/core/config.h"
#include "bilevel/linear/linear_solver.h"
#include "bilevel/linear/preconditioner.h"

namespace bilevel {

struct MinresOptions {
  int64_t iterations = 20;           // products
  double tolerance = 1e-10;          // on ‖b − A q‖ / ‖b‖; never finer than the rounding of the dtype
  double damping = 0.0;              // solves (A + damping·I) q = b; definiteness is not needed
  int64_t true_residual_every = 20;  // the recursive residual drifts as Lanczos loses orthogonality; not read from TOML
  PreconditionerOptions preconditioner = {};
  std::vector<std::string> violations() const;
};
void read(Section& section, MinresOptions& options);

/// Minimal residuals for a symmetric operator, definite or not (Paige & Saunders 1975).
///
/// q is the point of the smallest residual in q0 + span{r0, A r0, …} (in the norm of M⁻¹ with a preconditioner M), so the
/// residual never rises; where A is definite the iterates differ from cg's, and the error falls too. Negative curvature is no
/// failure here, and LinearResult::smallest_curvature tells of it: a q at a saddle may be exact and still of no use. A singular A
/// with b outside its range ends the solve with Status::kSingular and a least-squares solution. A q0 whose residual is not below
/// that of zero is dropped. The rows of a block are solved together.
class Minres final : public LinearSolver {
 public:
  explicit Minres(MinresOptions options);
  std::string_view name() const override { return "minres"; }
  /// Throws Error where A is not symmetric, or the shapes do not fit.
  LinearResult solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const override;

 private:
  MinresOptions options_;
};

}  // namespace bilevel
