#pragma once
#include <memory>

#include "bilevel/outer/outer_optimizer.h"

namespace bilevel {

/// Any outer optimiser along a mean of the last w hypergradients, each as it was found at the x of its own step (SOBOW: Lin et
/// al. 2023; SmoothFBO: Bohne et al. 2026):
///
///   d̄_t = Σ_{i<w} η^i d_{t−i} / Σ_{i<w} η^i,   of as many as there are in the first steps
///
/// η = 1 is the plain mean, as in SmoothFBO; SOBOW's weights fall with age.
/// For hypergradients that are noisy because each step sees other data or solves its inner problem little: their noise falls, and
/// the step lags behind by w/2 steps, so that lr · curvature · w should stay below one. Hypergradients are averaged, not x nor
/// what the optimiser keeps. The mean is taken anew each time from what is stored, w vectors [dx] as `outer.window.…` beside
/// `outer.window_step`, so that it does not drift. w = 1 is the optimiser alone, bit for bit.
class Smoothed final : public OuterOptimizer {
 public:
  /// Throws Error for a window below 1, and for an η outside (0, 1].
  Smoothed(std::unique_ptr<OuterOptimizer> optimizer, int64_t window, double decay = 1.0);
  std::string_view name() const override { return optimizer_->name(); }
  at::Tensor step(State& state, const at::Tensor& x, const at::Tensor& gradient) const override;

 private:
  const std::unique_ptr<OuterOptimizer> optimizer_;
  const int64_t window_;
  const double decay_;
};

}  // namespace bilevel
