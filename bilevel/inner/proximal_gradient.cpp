// With P of inner/constraints.h and η = 1/L:
//
//   y' = P_η(z − η ∂y g(z)),   L doubled until  g(y') ≤ g(z) + ⟨∂y g(z), y' − z⟩ + ½L‖y' − z‖²
//   z' = y' + (θ − 1)/θ' (y' − y),   θ' = (1 + √(1 + 4θ²))/2
//
// and θ begins again at 1, with z' = y', where ⟨z − y', y' − y⟩ > 0 (the momentum points uphill) or the loss has risen.
#include "bilevel/inner/proximal_gradient.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"
#include "bilevel/inner/constraints.h"
#include "bilevel/inner/proximal_step.h"
#include "bilevel/inner/solver_helpers.h"
#include "bilevel/inner/step_size.h"

namespace bilevel {

std::vector<std::string> ProximalGradientOptions::violations() const {
  std::vector<std::string> list;
  if (lr && !(*lr > 0 && std::isfinite(*lr))) list.push_back(fmt::format("lr = {} must be positive and finite", *lr));
  if (max_iterations < 0) list.push_back(fmt::format("steps = {} must not be negative", max_iterations));
  if (!(tolerance > 0)) list.push_back(fmt::format("tolerance = {} must be positive", tolerance));
  return list;
}

void read(Section& section, ProximalGradientOptions& options) {
  read_lr(section, options.lr);
  section.read("steps", options.max_iterations);
  section.read("tolerance", options.tolerance);
  section.check(options.violations());
}

ProximalGradient::ProximalGradient(ProximalGradientOptions options) : options_(options) {
  for (const auto& violation : options_.violations()) throw Error("ProximalGradient: " + violation + ".");
}

at::Tensor ProximalGradient::step_size(const Problem& /*problem*/, const at::Tensor& /*x*/) const {
  throw Error(fmt::format(
      "{} offers no step size to one-step estimators, which know nothing of constraints; use estimator = \"implicit\".", name()));
}

InnerSolution ProximalGradient::solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                                      const TrajectoryPolicy& policy) const {
  refuse_trajectory(policy, name());
  const Problem& problem = oracle.problem();
  require_loss(problem, name());
  const at::NoGradGuard no_grad;
  const Batch batch = whole_batch(start, slice);
  const ProximalMap map = proximal_map(problem, x, start.y);
  const double rounding = loss_rounding(start.y);

  at::Tensor y = map.apply(start.y.detach(), 0.0);
  double L = 1;
  if (options_.lr) {
    L = 1 / *options_.lr;
  } else {
    const double curvature = largest_curvature(*oracle.linearize_inner(x, y, batch));
    if (std::isfinite(curvature) && curvature > 0) L = curvature;
  }
  InnerSolution solution;
  solution.previous = y;
  at::Tensor looked_at;
  const auto look = [&] {
    if (y.is_same(looked_at)) return;
    looked_at = y;
    const Gradients at_y = oracle.inner(x, y, batch);
    solution.loss = at_y.value.item<double>() + map.penalty(y);
    solution.stationarity = norm_of(map.residual(y, at_y.y, 1 / L));
  };
  look();
  solution.initial_stationarity = solution.stationarity;

  at::Tensor z = y;
  double theta = 1, loss = solution.loss;
  const auto restart = [&] {
    theta = 1;
    z = y;
  };
  const bool feasible = map.infeasibility(y) <= 1e3 * rounding * (1 + norm_of(y)) * std::sqrt(static_cast<double>(y.size(0)));
  while (feasible && solution.stationarity > options_.tolerance && solution.steps < options_.max_iterations &&
         std::isfinite(solution.stationarity + loss)) {
    const ProximalStep next = proximal_step(oracle, x, batch, map, z, oracle.inner(x, z, batch), L);
    ++solution.steps;
    const double total = next.loss + map.penalty(next.y);
    const bool momentum = theta > 1;
    if (momentum && total > loss + 100 * rounding * std::abs(loss)) {
      restart();
      continue;
    }
    const at::Tensor moved = sum_of(next.y, -1, y);
    const bool uphill = momentum && dot_of(next.step, moved) < 0;
    solution.previous = y;
    y = next.y;
    loss = total;
    const double theta_next = options_.accelerated && !uphill ? (1 + std::sqrt(1 + 4 * theta * theta)) / 2 : 1;
    z = theta_next > 1 ? sum_of(y, (theta - 1) / theta_next, moved) : y;
    theta = theta_next;
    // The gradient at y is one more; it is asked for where the step itself says that y may do.
    if (L * next.length <= options_.tolerance || !std::isfinite(loss)) {
      look();
      if (solution.stationarity > options_.tolerance) restart();
    }
  }
  look();
  solution.y = y;
  solution.step_size = at::scalar_tensor(1 / L, y.options());
  conclude(solution, options_.tolerance, false);
  if (!feasible) {
    solution.status = Status::kDiverged;
    solution.message =
        fmt::format("No y satisfies the constraints: ‖A y − b‖ = {:.2g} at the nearest point found.", map.infeasibility(y));
  }
  return solution;
}

}  // namespace bilevel
