// value = ∂x f − (∂x∂y g(x, y_{T−1}))ᵀ q,   q = η ∂y f(x, y_T)
#include "bilevel/hypergrad/t1_t2.h"

#include <ATen/ATen.h>

#include "bilevel/hypergrad/assembly.h"

namespace bilevel {

std::vector<std::string> T1T2::objections(const Problem& problem, const InnerSolver& solver) const {
  auto objections = object_to_parts_beyond_the_inner_loss(problem, name());
  for (auto& objection : object_to_missing_step_size(problem, solver)) objections.push_back(std::move(objection));
  return objections;
}

Hypergradient T1T2::estimate(const EstimatorInput& in) const {
  const at::NoGradGuard no_grad;
  const Gradients outer = in.oracle.outer(in.x, in.solution.y, in.outer_batch);
  Hypergradient h = direct_term(in, outer, "F_T, last step as plain gradient descent");
  h.q = inner_step_size(in) * outer.y;
  h.value = outer.x - in.oracle.linearize_inner(in.x, in.solution.previous, in.batch_of_cross_product())->vjp(h.q).x;
  h.certificate.bound_reason = "No bound: one gradient step stands for the inverse Hessian.";
  h.message = "The derivative of one gradient step; how far it is from that of F is not known.";
  check_finite(h, in.solution);
  return h;
}

}  // namespace bilevel
