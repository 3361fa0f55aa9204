#include "bilevel/hypergrad/penalty.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/assembly.h"

namespace bilevel {

std::vector<std::string> PenaltyOptions::violations() const {
  std::vector<std::string> found;
  if (!(lambda > 0 && std::isfinite(lambda))) found.push_back(fmt::format("lambda should be positive, got {}.", lambda));
  if (steps < 1) found.push_back(fmt::format("steps should be at least 1, got {}.", steps));
  return found;
}

void read(Section& section, PenaltyOptions& options) {
  section.read("lambda", options.lambda);
  section.read("steps", options.steps);
  std::string difference = options.central ? "central" : "forward";
  section.read_choice("difference", difference, {"central", "forward"});
  options.central = difference == "central";
  section.check(options.violations());
}

Penalty::Penalty(PenaltyOptions options) : options_(options) {
  for (const auto& violation : options_.violations()) throw Error("Penalty: " + violation);
}

std::vector<std::string> Penalty::objections(const Problem& problem, const InnerSolver& solver) const {
  if (problem.has_optimality_map()) {
    return {"\"penalty\" adds f to the inner loss, and this problem gives an optimality map. Use estimator = \"implicit\"."};
  }
  auto objections = object_to_parts_beyond_the_inner_loss(problem, name());
  for (auto& objection : object_to_missing_step_size(problem, solver)) objections.push_back(std::move(objection));
  return objections;
}

// K steps on g + σ f.
at::Tensor Penalty::minimum(const EstimatorInput& in, const at::Tensor& step_size, double sigma) const {
  at::Tensor z = in.solution.y;
  for (int64_t k = 0; k < options_.steps; ++k) {
    at::Tensor direction = in.oracle.inner(in.x, z, in.batch_of_cross_product()).y;
    if (sigma != 0) direction = direction.add(in.oracle.outer(in.x, z, in.outer_batch).y, sigma);
    z = z - step_size * direction;
  }
  return z;
}

Hypergradient Penalty::estimate(const EstimatorInput& in) const {
  const at::NoGradGuard no_grad;
  const double sigma = 1 / options_.lambda;
  const at::Tensor step_size = inner_step_size(in);
  Hypergradient h = direct_term(in, in.oracle.outer(in.x, in.solution.y, in.outer_batch), "F");
  const at::Tensor plus = minimum(in, step_size, sigma), minus = minimum(in, step_size, options_.central ? -sigma : 0.0);
  const at::Tensor slope = (in.oracle.inner_grad_x(in.x, plus, in.batch_of_cross_product()) -
                            in.oracle.inner_grad_x(in.x, minus, in.batch_of_cross_product())) *
                           (options_.lambda / (options_.central ? 2 : 1));
  const at::Tensor direct = in.oracle.outer(in.x, plus, in.outer_batch).x;
  h.value = slope + (options_.central ? 0.5 * (direct + in.oracle.outer(in.x, minus, in.outer_batch).x) : direct);
  h.q = (minus - plus) * (options_.lambda / (options_.central ? 2 : 1));
  h.certificate.bias = "a finite penalty, and as many steps on the penalised losses, stand for the inverse Hessian";
  h.certificate.bound_reason = "No bound: how far the penalised losses are from their minima is not known.";
  h.message =
      fmt::format("{} steps on each penalised loss, λ = {:.3g}; what a larger λ and more steps would change is not known.",
                  options_.steps, options_.lambda);
  check_finite(h, in.solution);
  return h;
}

}  // namespace bilevel
