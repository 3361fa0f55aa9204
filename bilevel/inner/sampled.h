#pragma once
#include <memory>
#include <vector>

#include "bilevel/inner/inner_solver.h"

namespace bilevel {

/// One of several inner solvers, drawn anew at each solve: a distribution of inner trainings, for outer variables that must serve
/// them all (the fine-tunings that ResAlign simulates, Li et al. 2025).
///
/// Which one is drawn depends on the seed, the inner problem and the step that the solve begins at, so that a resumed run draws
/// the same. Nothing is carried over from one solve to the next but y. The solvers must drive ∂y g or the optimality map itself
/// to zero: no weight decay of their own.
class SampledSolver final : public InnerSolver {
 public:
  /// Throws Error for no candidate, and for one with a weight decay.
  SampledSolver(std::vector<std::unique_ptr<InnerSolver>> candidates, uint64_t seed);
  std::string_view name() const override { return "sampled"; }
  InnerSolution solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                      const TrajectoryPolicy& policy) const override;
  /// Throws Error: it is another one in each solve; InnerSolution::step_size is what was used.
  at::Tensor step_size(const Problem& problem, const at::Tensor& x) const override;
  bool stops_at_stationarity() const override;

  /// The number of the candidate that the solve of inner problem `slice` beginning at `first_step` takes.
  size_t drawn(int64_t first_step, int64_t slice) const;

 private:
  std::vector<std::unique_ptr<InnerSolver>> candidates_;
  uint64_t seed_;
};

}  // namespace bilevel
