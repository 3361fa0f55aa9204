#pragma once
#include <string>

#include "bilevel/core/config.h"
#include "bilevel/linear/linear_solver.h"

namespace bilevel {

struct NystromOptions {
  int64_t rank = 20;  // products k with A; with λ_{k+1} above the ridge the solution is of little use, and its residual says so
  double ridge = 0.01;  // ρ: 1/ρ stands for A⁻¹ outside the k directions. It biases the solution, damping changes the system
  double damping = 0.0;               // solves (A + damping·I) q = b
  std::string sampling = "gaussian";  // or "coordinates", the directions of the published method; they waste rank on flat ones
  uint64_t seed = 0;                  // of the directions
  std::vector<std::string> violations() const;
};
void read(Section& section, NystromOptions& options);

/// Nyström's approximation with the Woodbury formula: q = (A_k + (δ + ρ) I)⁻¹ b, A_k of rank k from k products and no iteration
/// (Hataya & Yamada 2023; decomposed as by Frangella, Tropp & Udell 2023).
///
/// Exact, but for ρ, where k ≥ rank A. `relative_residual` is that of the system (A + δI) q = b itself, by a product with the
/// solution. One that is above 1 ends in Status::kDiverged: zero would have been better. Negative curvature in the directions
/// gives Status::kIndefinite, with the solution for the positive part. q0 is not used.
class Nystrom final : public LinearSolver {
 public:
  explicit Nystrom(NystromOptions options);
  std::string_view name() const override { return "nystrom"; }
  /// Throws Error where A is not symmetric, or the shapes do not fit.
  LinearResult solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const override;

 private:
  NystromOptions options_;
};

}  // namespace bilevel
