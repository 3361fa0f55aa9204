#pragma once
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/core/stream.h"
#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

struct EvoGradOptions {
  enum class Noise { kRademacher, kGaussian };
  int64_t copies = 2;                // K, the paper's; more make the estimate quieter, and its expectation 1 − 1/K of the whole
  double sigma = 1e-3;               // of the copies around y; large beside τ/‖∂y g‖ one copy takes all the weight
  double temperature = 0.05;         // τ of the softmax over the copies' losses
  Noise noise = Noise::kRademacher;  // ±σ in each coordinate, or normal
  std::vector<std::string> violations() const;
};
/// Keys: copies, sigma, temperature, noise = "rademacher" | "gaussian".
void read(Section& section, EvoGradOptions& options);

/// EvoGrad (Bohdal, Yang & Hospedales 2021, algorithm 1): the derivative by x of an evolutionary step from the y that was
/// reached,
///
///   y_k = y + ε_k,   a = softmax(−g(x, y_k)/τ),   f(x, Σ a_k y_k),      k = 1 … K
///
/// through the weights a alone. K values of g, K gradients ∂x g and one ∂y f; no second derivative, and no gradient by y of g.
/// For small σ its expectation is
///
///   ∂x f − η (∂x∂y g)ᵀ ∂y f  at y,   η = σ² (1 − 1/K)/τ,
///
/// `identity` with another step size: with the defaults η = 1e-5, so that the value is that much shorter than t1-t2's, and noisy.
/// An outer rule that is blind to length (adam with a small eps, sign) suits it; a weight decay on x would drown it. All copies
/// see one batch and one draw of the loss' own random numbers. New ε_k at each outer step, and the same again on a replay.
class EvoGrad final : public Estimator {
 public:
  explicit EvoGrad(EvoGradOptions options = {});
  std::string_view name() const override { return "evograd"; }
  BatchRoles batch_roles() const override { return {.hvps = false, .cross_product = true}; }
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override;
  Hypergradient estimate(const EstimatorInput& in) const override;
  /// η, the inner step size that the evolutionary step has in expectation.
  double step_size() const;
  /// ε/σ [K, dy], in double.
  at::Tensor noise(Draw draw, int64_t dy) const;

 private:
  EvoGradOptions options_;
};

}  // namespace bilevel
