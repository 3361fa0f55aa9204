// value = ∂x f − η [∂x g(x, y⁺) − ∂x g(x, y⁻)] / (2ε),   y± = y_{T−1} ± ε b,   b = ∂y f(x, y_T),   ε = radius/‖b‖
#include "bilevel/hypergrad/darts.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"
#include "bilevel/hypergrad/assembly.h"

namespace bilevel {

Darts::Darts(double radius) : radius_(radius) {
  require(radius > 0 && std::isfinite(radius), fmt::format("Darts: radius should be positive, got {}.", radius));
}

std::vector<std::string> Darts::objections(const Problem& problem, const InnerSolver& solver) const {
  if (problem.has_optimality_map()) {
    return {
        "\"darts\" takes differences of ∂x g, and this problem gives an optimality map, not a loss g. Use estimator = "
        "\"implicit\", "
        "or \"t1-t2\"."};
  }
  auto objections = object_to_parts_beyond_the_inner_loss(problem, name());
  for (auto& objection : object_to_missing_step_size(problem, solver)) objections.push_back(std::move(objection));
  return objections;
}

Hypergradient Darts::estimate(const EstimatorInput& in) const {
  const at::NoGradGuard no_grad;
  const Gradients outer = in.oracle.outer(in.x, in.solution.y, in.outer_batch);
  Hypergradient h = direct_term(in, outer, "F_T, last step as plain gradient descent, by differences");
  h.certificate.bias = "a difference over a finite radius stands for the cross product";
  const at::Tensor eta = inner_step_size(in);
  h.q = eta * outer.y;
  const double norm = norm_of(outer.y);
  if (norm > 0) {  // at b = 0 the implicit part is zero
    const double epsilon = radius_ / norm;
    const at::Tensor y = in.solution.previous;
    const at::Tensor plus = in.oracle.inner_grad_x(in.x, y + epsilon * outer.y, in.batch_of_cross_product());
    const at::Tensor minus = in.oracle.inner_grad_x(in.x, y - epsilon * outer.y, in.batch_of_cross_product());
    h.value = outer.x - (eta / (2 * epsilon)) * (plus - minus);
  }
  h.certificate.bound_reason =
      "No bound: one gradient step stands for the inverse Hessian, and a difference for the cross product.";
  h.message = "The derivative of one gradient step by central differences; how far it is from that of F is not known.";
  check_finite(h, in.solution);
  return h;
}

}  // namespace bilevel
