#pragma once
#include <memory>
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/hypergrad/estimator.h"
#include "bilevel/linear/linear_solver.h"

namespace bilevel {

struct MoreauOptions {
  double gamma = 0.0;    // γ, how far the inner solve goes: 0: step size × steps, which is right to first order in H
  int64_t halvings = 5;  // of the step of a fixed point that diverges, before the estimate is BAD
  std::vector<std::string> violations() const;
};
/// Keys: gamma, halvings.
void read(Section& section, MoreauOptions& options);

/// The derivative of an inner solve of few steps from y₀(x), taken for one proximal step (Li et al. 2025, ResAlign; Rajeswaran et
/// al. 2019, implicit MAML, where it is one):
///
///   y(x) = argmin g(x, y) + ‖y − y₀(x)‖²/(2γ),
///   value = ∂x f − (∂x∂y g)ᵀ q + (∂y₀/∂x)ᵀ q/γ,   (H + I/γ) q = ∂y f,
///
/// everything at the y that was reached. The trajectory is not kept: K products with H, whatever the number of steps. For γ → 0
/// it is the derivative by y₀ alone, for γ → ∞ that of implicit. The linear solver is any of linear/; a fixed point (richardson,
/// neumann) steps by γ and halves that while it diverges. Where H has a curvature below −1/γ there is no proximal step, and the
/// estimate is BAD.
class Moreau final : public Estimator {
 public:
  explicit Moreau(std::unique_ptr<LinearSolver> solver, MoreauOptions options = {});
  std::string_view name() const override { return "moreau"; }
  BatchRoles batch_roles() const override { return {.hvps = true, .cross_product = true}; }
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override;
  Hypergradient estimate(const EstimatorInput& in) const override;

 private:
  double gamma(const EstimatorInput& in) const;
  std::unique_ptr<LinearSolver> solver_;
  MoreauOptions options_;
};

}  // namespace bilevel
