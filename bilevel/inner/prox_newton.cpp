// With P, R of inner/constraints.h, h(y) = Σ_j l1_j |y_j|, η = 1/L and F the elements that P lets move at y':
//
//   y' = P_η(y − η ∂y g(y))
//   H_FF p = (∂y g(y') + ∂h(y'))_F      by CG, to a relative residual of min(½, √(‖R(y')‖/‖R(y₀)‖))
//   y ← face(y' − t p),  t = 1, ½, …     until g + h falls by 10⁻⁴ t ⟨(∂y g + ∂h)_F, p⟩
//
// where face(·) clamps to the box and to the sign that y' has.
#include "bilevel/inner/prox_newton.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"
#include "bilevel/inner/constraints.h"
#include "bilevel/inner/newton_direction.h"
#include "bilevel/inner/proximal_step.h"
#include "bilevel/inner/solver_helpers.h"

namespace bilevel {

std::vector<std::string> ProxNewtonOptions::violations() const {
  std::vector<std::string> list;
  if (max_iterations < 0) list.push_back(fmt::format("steps = {} must not be negative", max_iterations));
  if (!(tolerance > 0)) list.push_back(fmt::format("tolerance = {} must be positive", tolerance));
  if (products < 1) list.push_back(fmt::format("products = {} must be at least 1", products));
  return list;
}

void read(Section& section, ProxNewtonOptions& options) {
  section.read("steps", options.max_iterations);
  section.read("tolerance", options.tolerance);
  section.read("products", options.products);
  section.check(options.violations());
}

ProxNewton::ProxNewton(ProxNewtonOptions options) : options_(options) {
  for (const auto& violation : options_.violations()) throw Error("ProxNewton: " + violation + ".");
}

at::Tensor ProxNewton::step_size(const Problem& /*problem*/, const at::Tensor& /*x*/) const { refuse_step_size(name()); }

InnerSolution ProxNewton::solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                                const TrajectoryPolicy& policy) const {
  refuse_trajectory(policy, name());
  const Problem& problem = oracle.problem();
  require_loss(problem, name());
  const at::NoGradGuard no_grad;
  const Batch batch = whole_batch(start, slice);
  const ProximalMap map = proximal_map(problem, x, start.y);
  require(map.is_separable(), fmt::format("{} knows nothing of linear equalities on y; use solver = \"prox\".", name()));

  InnerSolution solution;
  at::Tensor y = map.apply(start.y.detach(), 0.0);
  solution.previous = y;
  double L = 0;
  bool stuck = false;
  for (;; ++solution.steps) {
    const auto at_y = oracle.linearize_inner(x, y, batch);
    const at::Tensor gradient = at_y->residual();  // before the value: one pass gives both
    const Gradients here{at_y->value(), gradient, {}};
    if (solution.steps == 0) {
      // The curvature along the gradient is no bound; a proximal step doubles it where it must.
      const double square = dot_of(here.y, here.y), curvature = dot_of(here.y, at_y->jvp_y(here.y)) / square;
      L = std::isfinite(curvature) && curvature > 0 ? curvature : 1.0;
    }
    solution.loss = here.value.item<double>() + map.penalty(y);
    solution.stationarity = norm_of(map.residual(y, here.y, 1 / L));
    if (solution.steps == 0) solution.initial_stationarity = solution.stationarity;
    if (!(solution.stationarity > options_.tolerance) || solution.steps == options_.max_iterations || stuck) break;
    if (!std::isfinite(solution.loss)) break;

    const ProximalStep moved = proximal_step(oracle, x, batch, map, y, here, L);
    const at::Tensor free = map.free(moved.y, 1 / L);
    const auto at_moved = oracle.linearize_inner(x, moved.y, batch);
    const at::Tensor slope = map.penalised(moved.y, at_moved->residual()).mul(free);
    const double eta = std::min(0.5, std::sqrt(solution.stationarity / solution.initial_stationarity));
    const NewtonDirection along = newton_direction([&](const at::Tensor& v) { return at_moved->jvp_y(v).mul(free); }, slope, eta,
                                                   options_.products, nullptr);
    const double fall = dot_of(slope, along.p), total = moved.loss + map.penalty(moved.y);
    const double slack = 10 * loss_rounding(y) * std::abs(total);
    at::Tensor next = moved.y;
    for (double t = along.first; t > 1e-6 * along.first && fall > 0; t /= 2) {
      const at::Tensor tried = map.face(moved.y, sum_of(moved.y, -t, along.p));
      const double there = oracle.inner_value(x, tried, batch).item<double>() + map.penalty(tried);
      if (!(there <= total - 1e-4 * t * fall + slack)) continue;
      next = tried;
      break;
    }
    solution.previous = y;
    stuck = norm_of(sum_of(next, -1, y)) <= loss_rounding(y) * norm_of(y);
    y = next;
  }
  solution.y = y;
  solution.step_size = at::scalar_tensor(1 / L, y.options());
  conclude(solution, options_.tolerance, stuck);
  return solution;
}

}  // namespace bilevel
