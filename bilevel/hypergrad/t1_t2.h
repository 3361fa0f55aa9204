#pragma once
#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

/// T1–T2 (Luketina, Berglund, Greff & Raiko 2016):
///
///   ∂x f(y_T) − η (∂x∂y g at y_{T−1})ᵀ ∂y f(y_T),     η the inner step size
///
/// Differentiates the last step y_T = y_{T−1} − η ∂y g(x, y_{T−1}) as if it were one of plain gradient descent. With plain `sgd`
/// that is `one-step`; with momentum, Adam or weight decay it is not, and only `one-step` is then a derivative. Costs one cross
/// product. The inner batch is that of the solution, so for a stochastic inner solve it is an estimate of that quantity.
class T1T2 final : public Estimator {
 public:
  std::string_view name() const override { return "t1-t2"; }
  BatchRoles batch_roles() const override { return {.hvps = false, .cross_product = true}; }
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override;
  Hypergradient estimate(const EstimatorInput& in) const override;
};

}  // namespace bilevel
