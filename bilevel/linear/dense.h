#pragma once
#include "bilevel/core/config.h"
#include "bilevel/linear/linear_solver.h"

namespace bilevel {

struct DenseOptions {
  double damping = 0.0;    // solves (A + damping·I) q = b
  int64_t max_dim = 5000;  // A takes 8·d² bytes and d products: 200 MB at 5000
  std::vector<std::string> violations() const;
};
void read(Section& section, DenseOptions& options);

/// The matrix of A, by d products, and its LU decomposition in double: exact to rounding for any regular A, symmetric and
/// definite or not.
///
/// A matrix that is singular to rounding gives Status::kSingular and the least-squares solution of the smallest norm. q0 is not
/// used.
class Dense final : public LinearSolver {
 public:
  explicit Dense(DenseOptions options);
  std::string_view name() const override { return "dense"; }
  /// Throws Error where A is larger than max_dim, or the shapes do not fit.
  LinearResult solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const override;

 private:
  DenseOptions options_;
};

}  // namespace bilevel
