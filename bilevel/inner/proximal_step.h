#pragma once
#include "bilevel/inner/constraints.h"
#include "bilevel/oracle/oracle.h"

namespace bilevel {

struct ProximalStep {
  at::Tensor y, step;  // y' and y' − z
  double loss = 0;     // g(y')
  double length = 0;   // ‖y' − z‖
};

/// y' = P_η(z − η ∂y g(z)), η = 1/L, with L doubled until g(y') ≤ g(z) + ⟨∂y g(z), y' − z⟩ + ½L‖y' − z‖² as far as rounding shows
/// (Beck & Teboulle 2009, §4). `at_z` has g and ∂y g at z.
ProximalStep proximal_step(const Oracle& oracle, const at::Tensor& x, const Batch& batch, const ProximalMap& map,
                           const at::Tensor& z, const Gradients& at_z, double& L);

}  // namespace bilevel
