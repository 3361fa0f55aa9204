#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
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
  std::function<at::Tensor(const at::Tensor&)>
      precondition;     // M⁻¹ v, M ≈ A symmetric positive definite; may be empty; cg uses it
  bool blocks = false;  // the products also take [k, d], k vectors row by row
  /// A step s for which q ← q + s (b − A q) settles, for solvers that take such steps and were given none: the inner step size.
  /// A scalar or [d]; undefined: unknown.
  at::Tensor step_size;
};

struct LinearResult {
  at::Tensor solution;  // the best iterate
  Status status = Status::kIterationLimit;
  std::string message;           // one sentence
  double relative_residual = 0;  // ‖b − A q‖ / ‖b‖, computed from the solution itself; infinite where b is not finite
  int64_t iterations = 0;        // products with A that moved the iterate
  std::vector<double> history;   // relative residual after each iteration
};

/// Solves A q = b, or (A + δI) q = b where the solver's options have a damping δ; residuals are those of the system solved.
///
/// b and q are [d], real. The right-hand side is normalised inside, so that the result does not depend on its scale. Never throws
/// for numerical reasons. A zero b gives q = 0 at once.
class LinearSolver {
 public:
  virtual ~LinearSolver() = default;
  virtual std::string_view name() const = 0;
  /// `q0` is the starting point; undefined means zero.
  virtual LinearResult solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const = 0;
};

}  // namespace bilevel
