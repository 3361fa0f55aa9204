#pragma once
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/inner/inner_solver.h"

namespace bilevel {

struct ProxNewtonOptions {
  int64_t max_iterations = 100;  // of a proximal step and a Newton step each
  double tolerance = 1e-8;       // on ‖R_η(y)‖₂, full batch
  int64_t products = 100;        // most Hessian products for one direction
  std::vector<std::string> violations() const;
};
/// Keys: steps (the most iterations), tolerance, products.
void read(Section& section, ProxNewtonOptions& options);

/// Minimises g + Σ_j l1_j |y_j| over a box (Problem::inner_constraints), on the full batch: a proximal gradient step decides
/// which elements are free, truncated conjugate gradients on Hessian products give Newton's step for these, and a search along it
/// stops elements that would cross zero or a bound there (Moré & Toraldo 1991, for bounds; Byrd, Chin, Nocedal & Oztoprak 2016,
/// for l1).
///
/// Once the right elements are free it is Newton's method: where FISTA takes hundreds of gradients it takes a few steps. The
/// solution is exact where `ProximalGradient`'s is: elements at a bound are that bound to the bit, those that the penalty
/// suppresses are 0. Linear equalities are refused. A nonconvex loss decreases too.
class ProxNewton final : public InnerSolver {
 public:
  explicit ProxNewton(ProxNewtonOptions options);
  std::string_view name() const override { return "prox-newton"; }
  InnerSolution solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                      const TrajectoryPolicy& policy) const override;
  /// Throws Error: there is no step size that would stand for the inverse Hessian.
  at::Tensor step_size(const Problem& problem, const at::Tensor& x) const override;

 private:
  ProxNewtonOptions options_;
};

}  // namespace bilevel
