#include "bilevel/inner/proximal_step.h"

#include <cmath>

#include "bilevel/core/vectors.h"
#include "bilevel/inner/solver_helpers.h"

namespace bilevel {

ProximalStep proximal_step(const Oracle& oracle, const at::Tensor& x, const Batch& batch, const ProximalMap& map,
                           const at::Tensor& z, const Gradients& at_z, double& L) {
  const double loss_z = at_z.value.item<double>(), slack = 100 * loss_rounding(z) * std::abs(loss_z);
  ProximalStep next;
  for (int halvings = 0; halvings < 60; ++halvings, L *= 2) {
    next.y = map.apply(sum_of(z, -1 / L, at_z.y), 1 / L);
    next.step = sum_of(next.y, -1, z);
    next.length = norm_of(next.step);
    next.loss = oracle.inner_value(x, next.y, batch).item<double>();
    // Below the rounding of the loss, L is what it was.
    const double quadratic = 0.5 * L * next.length * next.length;
    if (quadratic <= slack || next.loss <= loss_z + dot_of(at_z.y, next.step) + quadratic + slack) break;
  }
  return next;
}

}  // namespace bilevel
