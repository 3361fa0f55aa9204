#pragma once
#include "bilevel/core/config.h"
#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

struct ForwardOptions {
  int64_t max_columns = 256;          // dx above which reverse mode is nearly always the better choice
  int64_t budget = int64_t{4} << 30;  // bytes that the block of derivatives may take: it is held dx times
  std::vector<std::string> violations() const;
};
/// Keys: max_columns, budget (bytes, or text such as "4GB").
void read(Section& section, ForwardOptions& options);

/// The derivative of F_T(x) = f(x, y_T(x)) by forward mode, all columns of x at once (Franceschi, Donini, Frasconi & Pontil
/// 2017):
///
///   dy' = ∂Φ/∂(y, s, g, h) · (dy, ds, H dy + ∂x∂y g, ∂h/∂x),   ∇F_T = ∂x f + dy_Tᵀ ∂y f
///
/// The same number as `unrolled` to rounding, in memory that does not depend on T: dx vectors like y for dy, as many for each
/// tensor of the rule's state, and a few times that while a step is made. Costs 2 dx products at each step, and goes through the
/// solve once more, from its start. A column costs no product with ∂y r until it has begun, so that K windows of a shared step
/// size cost K/2 products a step (Micaelli & Storkey 2021). For a handful of hyperparameters and long inner runs.
class Forward final : public Estimator {
 public:
  explicit Forward(ForwardOptions options = {});
  std::string_view name() const override { return "forward"; }
  TrajectoryPolicy trajectory() const override;
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override;
  Hypergradient estimate(const EstimatorInput& in) const override;

 private:
  ForwardOptions options_;
};

}  // namespace bilevel
