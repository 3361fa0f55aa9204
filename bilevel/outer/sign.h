#pragma once
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/outer/outer_optimizer.h"

namespace bilevel {

struct OuterSignOptions {
  std::vector<double> lr = {0.1};  // the first step of each element of x, in its units; one for all, or one for each
  double shrink = 0.5;  // a coordinate whose derivative changes its sign has passed its optimum: its step shrinks by this
  std::vector<std::string> violations() const;
};
/// Keys: lr (a number or a list), shrink.
void read(Section& section, OuterSignOptions& options);

/// Steps along the signs of the hypergradient alone, each coordinate with a step of its own that shrinks where the sign flips
/// (Micaelli & Storkey 2021). For hypergradients whose signs are to be trusted and whose lengths are not: through
/// thousands of inner steps they differ by orders of magnitude. A derivative that is zero or no number moves nothing.
/// State: `outer.sign` and `outer.step` [dx].
class OuterSign final : public OuterOptimizer {
 public:
  explicit OuterSign(OuterSignOptions options);
  std::string_view name() const override { return "sign"; }
  at::Tensor step(State& state, const at::Tensor& x, const at::Tensor& gradient) const override;

 private:
  OuterSignOptions options_;
};

}  // namespace bilevel
