#pragma once
#include "bilevel/core/config.h"
#include "bilevel/linear/linear_solver.h"

namespace bilevel {

struct SgdSolverOptions {
  int64_t iterations = 100;  // products, each with a fresh batch where the operator has them
  double scale = 0.0;        // s, below 2 / (largest eigenvalue of a batch's matrix); 0: the operator's step_size
  double tail = 0.5;         // the mean of this last share of the iterates is returned; 0: the last one
  double damping = 0.0;      // solves (A + damping·I) q = b
  std::vector<std::string> violations() const;
};
void read(Section& section, SgdSolverOptions& options);

/// Stochastic gradient descent on ½ qᵀA q − bᵀq:  q ← q − s (A_k q − b), A_k the matrix of the k-th fresh batch (as in AmIGO,
/// Arbel & Mairal 2022), with the mean of the tail (Polyak & Juditsky 1992).
///
/// A_k comes from Operator::apply_batch; without it A stands for A_k, and with tail = 0 this is `richardson`. A constant s leaves
/// noise of the size of s in the last iterate and of 1/K in the mean. The residual is that of A itself, known at the end only. An
/// end that is worse than the start gives Status::kDiverged and the start.
class SgdSolver final : public LinearSolver {
 public:
  explicit SgdSolver(SgdSolverOptions options);
  std::string_view name() const override { return "sgd"; }
  /// Throws Error where neither the options nor A give a scale.
  LinearResult solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const override;

 private:
  SgdSolverOptions options_;
};

}  // namespace bilevel
