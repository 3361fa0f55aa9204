#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/outer/outer_optimizer.h"

namespace bilevel {

struct ExponentiatedGradientOptions {
  double lr = 0.1;                  // the change of log x in a step, for a derivative of 1 above the mean
  std::vector<int64_t> parts = {};  // lengths of the parts of x, each a simplex of its own; none: x is one
  std::vector<std::string> violations() const;
};
/// Keys: lr, parts.
void read(Section& section, ExponentiatedGradientOptions& options);

/// Mirror descent on the simplex {x ≥ 0, Σ x = 1} with the entropy as its distance (Kivinen & Warmuth 1997; Beck & Teboulle
/// 2003), the step of OBBO on distributions (Bohne et al. 2024): argmin ⟨d, z⟩ + KL(z, x)/lr over the simplex. It keeps to the
/// simplex by itself, so that a projection onto it changes nothing; for weights of data sources and other mixtures, where
/// elements differ by orders of magnitude. A constant added to d changes nothing. An element that is 0 stays 0, so begin inside.
/// No state.
class ExponentiatedGradient final : public OuterOptimizer {
 public:
  explicit ExponentiatedGradient(ExponentiatedGradientOptions options);
  std::string_view name() const override { return "exponentiated-gradient"; }
  /// Throws Error where x, or a part of it, is no distribution.
  at::Tensor step(State& state, const at::Tensor& x, const at::Tensor& gradient) const override;

 private:
  ExponentiatedGradientOptions options_;
};

}  // namespace bilevel
