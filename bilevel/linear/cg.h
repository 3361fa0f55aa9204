#pragma once
#include "bilevel/core/config.h"
#include "bilevel/linear/linear_solver.h"
#include "bilevel/linear/preconditioner.h"

namespace bilevel {

struct CgOptions {
  int64_t iterations = 20;           // the hypergradient error falls geometrically; 5–20 is customary (AID-CG)
  double tolerance = 1e-10;          // on ‖b − A q‖ / ‖b‖; never finer than the rounding of the dtype
  double damping = 0.0;              // solves (A + damping·I) q = b; use it where A may be indefinite
  int64_t true_residual_every = 10;  // the recursive residual drifts in float32; not read from TOML
  PreconditionerOptions preconditioner = {};
  std::vector<std::string> violations() const;
};
void read(Section& section, CgOptions& options);

/// Conjugate gradients for a symmetric positive definite operator (Hestenes & Stiefel 1952).
///
/// Each iteration lowers both the energy norm and the 2-norm of the error q − q*, but not always the residual, which may rise for
/// a while on an ill-conditioned A. So the best iterate is the last one before a failure, unless rounding has spoilt it. Negative
/// curvature ends the solve with Status::kIndefinite. A q0 that is worse than zero, by the energy ½ qᵀA q − bᵀq, is dropped.
///
/// The rows of a block are solved together, each with scalars of its own. An iteration allocates nothing but what the product and
/// the preconditioner return, and a few numbers.
class Cg final : public LinearSolver {
 public:
  explicit Cg(CgOptions options);
  std::string_view name() const override { return "cg"; }
  /// Throws Error where A is not symmetric, or the shapes do not fit.
  LinearResult solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const override;

 private:
  CgOptions options_;
};

}  // namespace bilevel
