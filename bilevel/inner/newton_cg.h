#pragma once
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/inner/inner_solver.h"

namespace bilevel {

struct NewtonCgOptions {
  int64_t max_iterations = 50;   // Newton steps; near the optimum each doubles the digits
  double tolerance = 1e-8;       // on ‖∂y g‖₂, full batch
  int64_t products = 100;        // most Hessian products for one direction
  int64_t max_evaluations = 20;  // of the loss, in one line search
  std::vector<std::string> violations() const;
};
/// Keys: steps (the most Newton steps), tolerance, products.
void read(Section& section, NewtonCgOptions& options);

/// Newton's method with truncated conjugate gradients on Hessian products and a strong Wolfe line search (Nocedal & Wright 2006,
/// algorithm 7.1), on the full batch.
///
/// CG stops at min(½, √(‖∂y g‖/‖∂y g‖₀)) of the gradient, which makes the convergence superlinear, and at the first direction of
/// negative curvature: what it has by then is a descent direction, and at once the gradient is. So it decreases a nonconvex loss
/// too; a saddle point that it happens to hit exactly holds it. Problem::inner_preconditioner speeds up CG.
class NewtonCg final : public InnerSolver {
 public:
  explicit NewtonCg(NewtonCgOptions options);
  std::string_view name() const override { return "newton-cg"; }
  InnerSolution solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                      const TrajectoryPolicy& policy) const override;
  /// Throws Error: there is no step size that would stand for the inverse Hessian.
  at::Tensor step_size(const Problem& problem, const at::Tensor& x) const override;

 private:
  NewtonCgOptions options_;
};

}  // namespace bilevel
