#pragma once
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/inner/inner_solver.h"

namespace bilevel {

struct LbfgsOptions {
  int64_t max_iterations = 200;
  double tolerance = 1e-6;       // on ‖∂y g‖₂, full batch
  int64_t memory = 10;           // pairs kept; 5–20 is customary
  int64_t max_evaluations = 20;  // of the loss, in one line search
  std::vector<std::string> violations() const;
};
/// Keys: steps (the most iterations), tolerance, history.
void read(Section& section, LbfgsOptions& options);

/// Limited-memory BFGS on the full batch (Nocedal & Wright 2006, algorithms 7.4 and 7.5) with a strong Wolfe line search.
///
/// Where the problem offers Problem::inner_preconditioner, it stands for the initial inverse Hessian; badly scaled features then
/// cost little. Pairs of non-positive curvature are dropped, so that a nonconvex loss is only slower. A solve that cannot go
/// further because of rounding ends with the best point and kIterationLimit.
class Lbfgs final : public InnerSolver {
 public:
  explicit Lbfgs(LbfgsOptions options);
  std::string_view name() const override { return "lbfgs"; }
  InnerSolution solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                      const TrajectoryPolicy& policy) const override;
  /// Throws Error: there is no step size that would stand for the inverse Hessian.
  at::Tensor step_size(const Problem& problem, const at::Tensor& x) const override;

 private:
  LbfgsOptions options_;
};

}  // namespace bilevel
