#pragma once
#include <memory>
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/hypergrad/estimator.h"
#include "bilevel/linear/inverse_tracker.h"
#include "bilevel/problem/likelihood.h"

namespace bilevel {

struct FisherOptions {
  enum class Form { kWindow, kDense, kKronecker };
  Form form = Form::kWindow;  // the last scores (WindowedInverse), a smoothed mean by its inverse [dy, dy] (SmoothedInverse), or
                              // by two factors for each layer (KroneckerInverse)
  Labels labels = Labels::kSampled;  // the data's own make it wrong where they are wrong
  int64_t scores = 8;                // samples of an inner step's batch that give a score; 0: all of them
  int64_t steps = 40;                // along the last so many inner steps; 0: at the y that was reached alone
  int64_t window = 320;              // rows of S in the form kWindow, over outer steps
  double smoothing = 0.99;           // β of the other forms, for one inner step
  double damping = 1e-3;             // added to the ridge, which may be 0 for biases
  bool overlap = false;              // the mean is kept by a second thread, beside the inner steps and their scores
  std::vector<std::string> violations() const;
};
/// Keys: form = "window" | "dense" | "kronecker", labels = "sampled" | "observed" | "enumerated", scores, steps, window,
/// smoothing, damping, overlap.
void read(Section& section, FisherOptions& options);

/// Natural hypergradient descent (Kong, Chen, Zhang & Mou 2026): the implicit hypergradient with the Fisher information of the
/// inner likelihood in place of the Hessian,
///
///     ∂x f − (∂x∂y g)ᵀ q,   (diag(λ + δ) + mean of SᵀS) q = ∂y f,
///
/// where the rows of S are scores √w_i ∂y ℓ_i of single samples (Oracle::scores), taken at the points that the inner solve went
/// through, λ is the ridge and δ the damping; the form kKronecker has an approximation in place of the mean. No product with the
/// Hessian and no iterative solve: a few scores for each inner step, and one cross product. A warm start carries S, or the
/// inverse, on to the next outer step.
///
/// The Fisher information is the Hessian at the optimum of a model that is right, and the Gauss–Newton matrix everywhere: exact
/// for generalised linear models. What is left is the error of the scores, of the weights and points that they belong to, and,
/// with the data's own labels, that of the labels. For problems with an inner likelihood; a rule's weight decay counts as ridge.
class Fisher final : public Estimator {
 public:
  explicit Fisher(FisherOptions options = {});
  std::string_view name() const override { return "fisher"; }
  TrajectoryPolicy trajectory() const override;
  BatchRoles batch_roles() const override { return {.hvps = false, .cross_product = true}; }
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override;
  /// Takes the scores while the inner solve goes on, where `overlap` says so.
  std::shared_ptr<Follower> follower(const EstimatorInput& in) const override;
  Hypergradient estimate(const EstimatorInput& in) const override;

 private:
  class Mean;
  std::shared_ptr<Mean> mean(const EstimatorInput& in) const;
  FisherOptions options_;
};

}  // namespace bilevel
