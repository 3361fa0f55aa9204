#pragma once
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/inner/inner_solver.h"

namespace bilevel {

struct AndersonOptions {
  double lr = 1.0;          // β, the step along r: 1 for fixed points r = y − φ(x, y); for losses a step size below 2/L
  int64_t steps = 200;      // evaluations of r at most
  double tolerance = 1e-8;  // on ‖r‖₂, full batch
  int64_t history = 10;     // differences kept; as many as y has elements solve a linear system exactly
  std::vector<std::string> violations() const;
};
/// Keys: lr, steps, tolerance, history.
void read(Section& section, AndersonOptions& options);

/// Anderson acceleration of the fixed-point iteration y ← y − β r(x, y) (Anderson 1965; Walker & Ni 2011), on the full batch: for
/// optimality maps given directly, where there is no loss to descend.
///
/// Each step takes the combination of the last iterates whose r is smallest, by least squares, so that on a linear system it is
/// about as good as GMRES, and finds saddles (KKT systems) and fixed points of maps that do not contract. What comes back is the
/// best y seen; a step that makes ‖r‖ tenfold the best one drops the history, and goes on from there with half the β.
class Anderson final : public InnerSolver {
 public:
  explicit Anderson(AndersonOptions options);
  std::string_view name() const override { return "anderson"; }
  InnerSolution solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                      const TrajectoryPolicy& policy) const override;
  /// Throws Error: no multiple of r alone is what a step takes.
  at::Tensor step_size(const Problem& problem, const at::Tensor& x) const override;

 private:
  AndersonOptions options_;
};

}  // namespace bilevel
