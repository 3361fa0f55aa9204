#pragma once
#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

/// The implicit hypergradient with η times the identity in place of the inverse Hessian, everything at y_T:
///
///   ∂x f − η (∂x∂y g)ᵀ ∂y f,     η the inner step size
///
/// This is `implicit` with a Neumann series of no product and scale η, a biased estimate of ∇F whose bias no amount of inner
/// steps removes (Lorraine, Vicol & Duvenaud 2020, §3, call it the zeroth-order Neumann approximation). `t1-t2` differs in taking
/// the cross product at y_{T−1}. Costs one cross product.
class Identity final : public Estimator {
 public:
  std::string_view name() const override { return "identity"; }
  BatchRoles batch_roles() const override { return {.hvps = false, .cross_product = true}; }
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override;
  Hypergradient estimate(const EstimatorInput& in) const override;
};

}  // namespace bilevel
