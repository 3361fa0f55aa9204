// value = ∂x f − (∂x∂y g)ᵀ q,   q = η ∂y f,   all at (x, y_T)
#include "bilevel/hypergrad/identity.h"

#include <ATen/ATen.h>

#include "bilevel/hypergrad/assembly.h"

namespace bilevel {

std::vector<std::string> Identity::objections(const Problem& problem, const InnerSolver& solver) const {
  auto objections = object_to_parts_beyond_the_inner_loss(problem, name());
  for (auto& objection : object_to_missing_step_size(problem, solver)) objections.push_back(std::move(objection));
  return objections;
}

Hypergradient Identity::estimate(const EstimatorInput& in) const {
  const at::NoGradGuard no_grad;
  const Gradients outer = in.oracle.outer(in.x, in.solution.y, in.outer_batch);
  Hypergradient h = direct_term(in, outer, "F, with step size × identity for the inverse Hessian");
  h.certificate.bias = "the step size stands for the inverse Hessian";
  h.q = inner_step_size(in) * outer.y;
  h.value = outer.x - in.oracle.linearize_inner(in.x, in.solution.y, in.batch_of_cross_product())->vjp(h.q).x;
  h.certificate.bound_reason = "No bound: the step size stands for the inverse Hessian.";
  h.message = "The step size stands for the inverse Hessian; how far that is from the derivative of F is not known.";
  check_finite(h, in.solution);
  return h;
}

}  // namespace bilevel
