#pragma once
#include <memory>
#include <vector>

#include "bilevel/hypergrad/implicit.h"

namespace bilevel {

/// The implicit hypergradient, group by group of the outer samples.
///
/// Its value is that of the whole outer set, the mean over the groups weighted by their sizes; beside it the hypergradient of
/// each group is kept, from which follow how much of the hypergradient is signal, and how x would have moved without a group or
/// on a resample of them.
class GroupedImplicit final : public Estimator {
 public:
  /// `groups` are index vectors (int64) that part the outer samples. What `estimate` finds is appended to `history`, [G, dx] a
  /// call. `inner_batches` says which inner samples the products with ∂y r and ∂x r are taken on, by the outer step.
  GroupedImplicit(std::unique_ptr<Implicit> implicit, std::vector<at::Tensor> groups, BatchPlan inner_batches,
                  std::vector<at::Tensor>& history);
  std::string_view name() const override { return "implicit"; }
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override {
    return implicit_->objections(problem, solver);
  }
  Hypergradient estimate(const EstimatorInput& in) const override;

 private:
  std::unique_ptr<Implicit> implicit_;
  std::vector<at::Tensor> groups_;
  BatchPlan inner_batches_;
  std::vector<at::Tensor>& history_;
  mutable std::vector<at::Tensor> q_;  // each group's solution, where the next solve starts
};

/// The unbiased share of ‖mean‖² that is no sampling noise, for the hypergradients [G, dx] of G groups of like size:
/// 1 − Σ_g ‖Γ_g − mean‖² / (G (G − 1) ‖mean‖²). At most 1; near or below 0 where the groups do not agree on a direction.
double signal_share(const at::Tensor& groups);

}  // namespace bilevel
