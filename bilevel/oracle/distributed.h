#pragma once
#include <memory>
#include <string>

#include "bilevel/oracle/oracle.h"
#include "bilevel/oracle/processes.h"

namespace bilevel {

/// Shares the samples of every batch among processes, each of which asks `oracle` about its own, and sums up values, gradients
/// and products, weighted by the number of samples:
///
///     g = Σ_p (n_p / n) g_p,   and so all derivatives of g;   f likewise.
///
/// So every algorithm that stands on it is distributed, and finds what one process finds, to rounding. Each of the P processes
/// runs that algorithm on the same x and y and must do the same calls in the same order. Of n samples, process p has those from
/// ⌊n p/P⌋ to ⌊n (p+1)/P⌋ − 1, and of a minibatch those that are among them, which may be none. A loss that takes no batches is
/// computed by each process as a whole. For losses that are means over the samples plus what does not depend on them (not for
/// batch statistics); losses that draw random numbers draw others in each process.
///
/// A product sends dy numbers, and with it the entries of x that no single sample owns (`Problem::outer_parts_of_samples`); the
/// samples' own entries follow where a whole vector [dx] is asked for: those of the batch, n for a full one. `vjp_share` leaves
/// them where they are.
class DistributedOracle final : public Oracle {
 public:
  /// The oracle must outlive it. Throws Error where the problem has no samples to share, or names parts of x as the samples' own
  /// that do not have an entry for each.
  DistributedOracle(const Oracle& oracle, std::shared_ptr<const Processes> processes);
  ~DistributedOracle() override;
  std::unique_ptr<Linearization> linearize_inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  Gradients inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  Gradients outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  std::unique_ptr<OutputSpace> output_space(const at::Tensor& x, const at::Tensor& y,
                                            const OutputSamples& samples) const override;
  /// Each process those of its own samples, and one exchange that brings them together.
  at::Tensor scores(const at::Tensor& x, const at::Tensor& y, const Batch& batch, Labels labels) const override;
  /// One exchange for all that a pass gives.
  std::unique_ptr<JointPass> joint_pass() const override;
  at::Tensor whole(const at::Tensor& x_bar) const override;
  int64_t greatest(int64_t metered) const override;

  /// How the samples and the entries of x are shared.
  class Shares;

 private:
  const Oracle& oracle_;
  const std::shared_ptr<const Shares> shares_;
};

}  // namespace bilevel
