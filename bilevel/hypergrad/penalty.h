#pragma once
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

struct PenaltyOptions {
  double lambda = 100.0;  // λ, the multiplier of g: the bias falls with it, and rounding, of size λ ε ‖∂x g‖, grows
  int64_t steps = 20;     // K, of gradient descent on each of the two penalised losses, from the y that was reached
  bool central = true;    // both signs of f: bias ∝ λ⁻² at the same cost. false: as F2SA has it, bias ∝ λ⁻¹
  std::vector<std::string> violations() const;
};
/// Keys: lambda, steps, difference = "central" | "forward".
void read(Section& section, PenaltyOptions& options);

/// The derivative of F by the value function of a penalised inner problem, ψ(x, σ) = min over y of g + σ f: dψ/dσ = f(x, y*) at
/// σ = 0, so with z± = argmin g ± σ f, σ = 1/λ,
///
///   central   ([∂x g + σ ∂x f](x, z₊) − [∂x g − σ ∂x f](x, z₋))/(2σ)        (F2SA-p, arXiv 2509.02937, p = 2)
///   forward   ∂x f(x, z₊) + λ (∂x g(x, z₊) − ∂x g(x, z₀))                    (F2SA, Kwon et al. 2023; V-PBGD, Shen & Chen 2023)
///
/// First derivatives only: no product with H and none with ∂x∂y g. z are reached by K steps each from y, with the step size of
/// the inner solve; both ways have the error of y in common, so that it drops out of the difference.
class Penalty final : public Estimator {
 public:
  explicit Penalty(PenaltyOptions options = {});
  std::string_view name() const override { return "penalty"; }
  BatchRoles batch_roles() const override { return {.hvps = false, .cross_product = true}; }
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override;
  Hypergradient estimate(const EstimatorInput& in) const override;

 private:
  at::Tensor minimum(const EstimatorInput& in, const at::Tensor& step_size, double sigma) const;
  PenaltyOptions options_;
};

}  // namespace bilevel
