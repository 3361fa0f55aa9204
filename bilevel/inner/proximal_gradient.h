#pragma once
#include <optional>
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/inner/inner_solver.h"

namespace bilevel {

struct ProximalGradientOptions {
  std::optional<double> lr = std::nullopt;  // 1/L to begin with; none: from the largest curvature at the start
  int64_t max_iterations = 1000;
  double tolerance = 1e-6;  // on ‖R_η(y)‖₂, full batch
  bool accelerated = true;  // FISTA; false: plain proximal (projected) gradient descent, which never overshoots
  std::vector<std::string> violations() const;
};
/// Keys: lr (a number or "auto"), steps (the most iterations), tolerance.
void read(Section& section, ProximalGradientOptions& options);

/// Proximal gradient descent on g + Σ_j l1_j |y_j| over a box and linear equalities (Problem::inner_constraints), on the full
/// batch; without an l1 penalty it is projected gradient descent. Accelerated: FISTA (Beck & Teboulle 2009) with the adaptive
/// restart of O'Donoghue & Candès (2015), which finds linear convergence by itself. The step η = 1/L is halved where the loss is
/// steeper than it allows.
///
/// The solution is the outcome of a proximal map: its elements at a bound are that bound to the bit, those that the penalty
/// suppresses are exactly 0. Stationarity is ‖R_η(y)‖₂ of inner/constraints.h with the last η, which InnerSolution::step_size is;
/// the loss includes the penalty. A problem without constraints is solved too. Nonconvex losses: a point that raises the loss is
/// dropped, so that it decreases all the way.
class ProximalGradient final : public InnerSolver {
 public:
  explicit ProximalGradient(ProximalGradientOptions options);
  std::string_view name() const override { return options_.accelerated ? "prox" : "projected-gradient"; }
  InnerSolution solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                      const TrajectoryPolicy& policy) const override;
  /// Throws Error: one-step estimators know nothing of constraints.
  at::Tensor step_size(const Problem& problem, const at::Tensor& x) const override;

 private:
  ProximalGradientOptions options_;
};

}  // namespace bilevel
