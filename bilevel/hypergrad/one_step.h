#pragma once
#include "bilevel/hypergrad/unrolled.h"

namespace bilevel {

/// One-step differentiation (Bolte, Pauwels & Vaiter 2023): the derivative of f(x, Φ(x, y_{T−1})) with y_{T−1} and the rule's
/// state held fixed, Φ the last step of the inner solve, whatever its rule:
///
///   ∂x f + (∂Φ/∂x)ᵀ ∂y f
///
/// This is `unrolled` with steps = 1. Its distance to ∇F is proportional to the contraction factor of the inner solver: small for
/// Newton's method, about 1 − μ/L of the implicit part for gradient descent.
class OneStep final : public Estimator {
 public:
  std::string_view name() const override { return "one-step"; }
  TrajectoryPolicy trajectory() const override { return last_step_.trajectory(); }
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override {
    return last_step_.objections(problem, solver);
  }
  Hypergradient estimate(const EstimatorInput& in) const override;

 private:
  Unrolled last_step_{{.steps = 1, .memory = Memory::kGraphs}};
};

}  // namespace bilevel
