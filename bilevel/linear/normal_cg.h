#pragma once
#include "bilevel/core/config.h"
#include "bilevel/linear/linear_solver.h"

namespace bilevel {

struct NormalCgOptions {
  int64_t iterations = 50;           // pairs of products, with A and with Aᵀ; its rate is that of κ, cg's that of √κ
  double tolerance = 1e-10;          // on ‖b − A q‖ / ‖b‖; never finer than the rounding of the dtype
  double damping = 0.0;              // solves (A + damping·I) q = b
  int64_t true_residual_every = 10;  // the recursive residual drifts in float32; not read from TOML
  std::vector<std::string> violations() const;
};
void read(Section& section, NormalCgOptions& options);

/// Conjugate gradients on the normal equations AᵀA q = Aᵀb, for any A with products by Aᵀ (Hestenes & Stiefel 1952, §10; in the
/// form of Björck 1996, CGLS, that never forms AᵀA q).
///
/// The residual falls with each iteration, by about (κ − 1)/(κ + 1): the condition of AᵀA is κ². An A that is singular and a b
/// outside its range end the solve with Status::kSingular and the least-squares solution; a b within it is solved.
class NormalCg final : public LinearSolver {
 public:
  explicit NormalCg(NormalCgOptions options);
  std::string_view name() const override { return "normal-cg"; }
  /// Throws Error where A is not symmetric and offers no products with its transpose.
  LinearResult solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const override;

 private:
  NormalCgOptions options_;
};

}  // namespace bilevel
