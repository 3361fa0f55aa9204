#pragma once
#include "bilevel/core/config.h"
#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

struct ZerothOrderOptions {
  int64_t samples = 16;  // N pairs of inner solves; the error falls as √(dx/N)
  double sigma = 0.01;   // of the perturbations of x: bias σ², and rounding of F over σ
  std::vector<std::string> violations() const;
};
/// Keys: samples, sigma.
void read(Section& section, ZerothOrderOptions& options);

/// The derivative of F_T smoothed by a Gaussian, from values of F_T alone, in antithetic pairs (Nesterov & Spokoiny 2017;
/// Salimans et al. 2017):
///
///   (1/N) Σ [F_T(x + σ uᵢ) − F_T(x − σ uᵢ)]/(2σ) uᵢ,   uᵢ ~ N(0, I),   an unbiased estimate of ∇ E F_T(x + σ u)
///
/// F_T(x) = f(x, y_T(x)) is the inner solve itself, from the same start and on the same batches: 2N more of them. Whatever the
/// inner solver is, and whatever x moves. The certificate holds the standard error. The direct term is reported, but not used.
/// (A published library overwrites the baseline that it subtracts, and is off by σ²; nothing is subtracted here, and the test
/// has the scale.)
class ZerothOrder final : public Estimator {
 public:
  explicit ZerothOrder(ZerothOrderOptions options = {});
  std::string_view name() const override { return "zeroth-order"; }
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override;
  Hypergradient estimate(const EstimatorInput& in) const override;

 private:
  ZerothOrderOptions options_;
};

}  // namespace bilevel
