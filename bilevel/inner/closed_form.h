#pragma once
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/inner/inner_solver.h"

namespace bilevel {

struct ClosedFormOptions {
  int64_t max_dim = 2000;    // up to here H is formed and factorised; above, CG on its products
  int64_t products = 2000;   // most products of CG
  double tolerance = 1e-12;  // of CG, on ‖∂y g‖ relative to that at the start
  std::vector<std::string> violations() const;
};
/// Keys: max_dim, products, tolerance.
void read(Section& section, ClosedFormOptions& options);

/// The minimiser of an inner loss that is quadratic in y (ridge regression): one solve of H (y − y₀) = −∂y g(y₀), refined once or
/// twice. An optimality map that is linear in y is solved the same way, with LU where it is not symmetric.
///
/// Throws Error where the loss is not quadratic, which it checks: H along a random direction must be the same at the start and at
/// a point far from start and solution. H that is not positive definite is kIndefinite: there is no single minimum.
class ClosedForm final : public InnerSolver {
 public:
  explicit ClosedForm(ClosedFormOptions options);
  std::string_view name() const override { return "closed-form"; }
  InnerSolution solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                      const TrajectoryPolicy& policy) const override;
  /// Throws Error: there is no step size that would stand for the inverse Hessian.
  at::Tensor step_size(const Problem& problem, const at::Tensor& x) const override;

 private:
  ClosedFormOptions options_;
};

}  // namespace bilevel
