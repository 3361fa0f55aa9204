#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bilevel/core/status.h"

namespace bilevel {

/// A square linear map on [d], given by its products.
struct Operator {
  int64_t dim = 0;
  bool symmetric = true;
  std::function<at::Tensor(const at::Tensor&)> apply;             // A v
  std::function<at::Tensor(const at::Tensor&)> apply_transposed;  // Aᵀ v; may be empty where A is symmetric
  /// A_k v, A_k the estimate of A from the k-th fresh batch, with mean A; may be empty. For `sgd`.
  std::function<at::Tensor(const at::Tensor&, int64_t k)> apply_batch;
  /// M⁻¹ v, M ≈ A symmetric positive definite; may be empty. For `cg` and `minres`.
  std::function<at::Tensor(const at::Tensor&)> precondition;
  bool blocks = false;  // the products also take [k, d], k vectors row by row
  /// A step s for which q ← q + s (b − A q) settles, for solvers that take such steps and were given none: the inner step size.
  /// A scalar or [d]; undefined: unknown.
  at::Tensor step_size;
};

struct LinearResult {
  at::Tensor solution;  // the best iterate, in the shape of b
  Status status = Status::kIterationLimit;
  std::string message;           // one sentence
  double relative_residual = 0;  // ‖b − A q‖ / ‖b‖, computed from the solution itself; infinite where b is not finite
  int64_t iterations = 0;        // products with A that moved the iterate; a product of a block counts once
  std::vector<double> history;   // relative residual after each iteration
  /// The smallest curvature of the system's matrix that the solve has seen (a Ritz value or a Rayleigh quotient; cg, minres,
  /// nystrom). Never below the smallest eigenvalue, and often above it: an OVER-estimate, which proves indefiniteness where it is
  /// negative, but no bound of the error.
  std::optional<double> smallest_curvature;
  /// pᵀA p / pᵀp ≤ 0 of the direction p that ended the solve with kIndefinite.
  std::optional<double> negative_curvature;
};

/// Solves A q = b, or (A + δI) q = b where the solver's options have a damping δ; residuals are those of the system solved.
///
/// b, q0 and q are [d], real; where the products of A take blocks they may also be [k, d], k right-hand sides row by row, each
/// solved as if it were alone. Status, message, residual and history then are those of the worst row, iterations those of the
/// longest. The right-hand side is normalised inside, so that the result does not depend on its scale. Never throws for numerical
/// reasons. A zero b gives q = 0 at once.
class LinearSolver {
 public:
  virtual ~LinearSolver() = default;
  virtual std::string_view name() const = 0;
  /// `q0` is the starting point; undefined means zero.
  virtual LinearResult solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const = 0;
};

}  // namespace bilevel
