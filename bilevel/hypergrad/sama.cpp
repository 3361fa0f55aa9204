// value = ∂x f − [∂x g(x, y⁺) − ∂x g(x, y⁻)] / (2ε),   y± = y_T ± ε v,   v = −(∂Φ/∂g)ᵀ b,   b = ∂y f(x, y_T),   ε = radius/‖v‖
#include "bilevel/hypergrad/sama.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"
#include "bilevel/hypergrad/assembly.h"
#include "bilevel/inner/rule_solver.h"

namespace bilevel {

std::vector<std::string> SamaOptions::violations() const {
  if (radius > 0 && std::isfinite(radius)) return {};
  return {fmt::format("radius should be positive, got {}.", radius)};
}

void read(Section& section, SamaOptions& options) {
  section.read("radius", options.radius);
  section.check(options.violations());
}

Sama::Sama(SamaOptions options) : options_(options) {
  for (const auto& violation : options_.violations()) throw Error("Sama: " + violation);
}

TrajectoryPolicy Sama::trajectory() const {
  return {.keep = true, .memory = Memory::kStates, .last = 1, .slots = 0, .budget = 0};
}

std::vector<std::string> Sama::objections(const Problem& problem, const InnerSolver& solver) const {
  if (problem.has_optimality_map()) {
    return {
        "\"sama\" takes differences of ∂x g, and this problem gives an optimality map, not a loss g. Use estimator = "
        "\"implicit\"."};
  }
  auto objections = object_to_parts_beyond_the_inner_loss(problem, name());
  if (dynamic_cast<const RuleSolver*>(&solver) == nullptr) {
    objections.push_back(
        fmt::format("\"sama\" differentiates the last step of an update rule, and the inner solver \"{}\" is none. "
                    "Use a rule such as \"adam\", or estimator = \"implicit\".",
                    solver.name()));
  }
  return objections;
}

Hypergradient Sama::estimate(const EstimatorInput& in) const {
  const at::NoGradGuard no_grad;
  const auto* solver = dynamic_cast<const RuleSolver*>(&in.solver);
  require(solver != nullptr && in.solution.trajectory != nullptr,
          "Sama::estimate: the solution has no last step of an update rule; solve with Sama::trajectory().");
  const Gradients outer = in.oracle.outer(in.x, in.solution.y, in.outer_batch);
  Hypergradient h = direct_term(in, outer, "F, with the last step's rule for the inverse Hessian, by differences");
  h.certificate.bias = "the last step's rule stands for the inverse Hessian";
  h.certificate.bound_reason =
      "No bound: the last step's rule stands for the inverse Hessian, and a difference for the cross product.";
  h.message = "The last step's rule stands for the inverse Hessian; how far that is from the derivative of F is not known.";
  if (in.solution.trajectory->size() > 0) {  // without a step no rule is there, and the implicit part is zero
    const RuleInput last = in.solution.trajectory->last_input();
    const Tensors no_state_bar(last.state.size(), at::zeros_like(outer.y));
    h.q = -solver->rule().vjp(last, outer.y, no_state_bar).gradient;
    const double norm = norm_of(h.q);
    if (norm > 0) {
      const double epsilon = options_.radius / norm;
      const Batch& batch = in.batch_of_cross_product();
      const at::Tensor plus = in.oracle.inner_grad_x(in.x, in.solution.y + epsilon * h.q, batch);
      const at::Tensor minus = in.oracle.inner_grad_x(in.x, in.solution.y - epsilon * h.q, batch);
      h.value = outer.x - (plus - minus) / (2 * epsilon);
    } else if (!std::isfinite(norm)) {
      h.value = outer.x + norm;
    }
  }
  check_finite(h, in.solution);
  return h;
}

}  // namespace bilevel
