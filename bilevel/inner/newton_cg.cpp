// y ← y − t p,   H p ≈ ∂y g by CG from p = 0, cut short at relative residual η = min(½, √(‖∂y g‖/‖∂y g‖₀)) or where a direction d
// has ⟨d, H d⟩ ≤ 0; t, tried from 1 on, satisfies the strong Wolfe conditions.
#include "bilevel/inner/newton_cg.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"
#include "bilevel/inner/line_search.h"
#include "bilevel/inner/newton_direction.h"
#include "bilevel/inner/solver_helpers.h"

namespace bilevel {

std::vector<std::string> NewtonCgOptions::violations() const {
  std::vector<std::string> list;
  if (max_iterations < 0) list.push_back(fmt::format("steps = {} must not be negative", max_iterations));
  if (!(tolerance > 0)) list.push_back(fmt::format("tolerance = {} must be positive", tolerance));
  if (products < 1) list.push_back(fmt::format("products = {} must be at least 1", products));
  if (max_evaluations < 1) list.push_back(fmt::format("max_evaluations = {} must be at least 1", max_evaluations));
  return list;
}

void read(Section& section, NewtonCgOptions& options) {
  section.read("steps", options.max_iterations);
  section.read("tolerance", options.tolerance);
  section.read("products", options.products);
  section.check(options.violations());
}

NewtonCg::NewtonCg(NewtonCgOptions options) : options_(options) {
  for (const auto& violation : options_.violations()) throw Error("NewtonCg: " + violation + ".");
}

at::Tensor NewtonCg::step_size(const Problem& /*problem*/, const at::Tensor& /*x*/) const { refuse_step_size(name()); }

InnerSolution NewtonCg::solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                              const TrajectoryPolicy& policy) const {
  refuse_trajectory(policy, name());
  require_free(oracle.problem(), name());
  require_loss(oracle.problem(), name());
  const at::NoGradGuard no_grad;
  const Problem::Preconditioner precondition = oracle.problem().inner_preconditioner(x);
  const Batch batch = whole_batch(start, slice);

  LineSearchOptions search;
  search.max_evaluations = options_.max_evaluations;
  search.rounding = 1e3 * loss_rounding(x);  // slopes decide near the optimum, where Newton steps are right
  InnerSolution solution;
  at::Tensor y = start.y.detach();
  solution.previous = y;
  bool stuck = false;
  for (;; ++solution.steps) {
    const auto linearization = oracle.linearize_inner(x, y, batch);
    const at::Tensor gradient = linearization->residual();
    solution.loss = linearization->value().item<double>();
    solution.stationarity = norm_of(gradient);
    if (solution.steps == 0) solution.initial_stationarity = solution.stationarity;
    if (!(solution.stationarity > options_.tolerance) || solution.steps == options_.max_iterations) break;
    if (!std::isfinite(solution.loss)) break;

    const double eta = std::min(0.5, std::sqrt(solution.stationarity / solution.initial_stationarity));
    const NewtonDirection along = newton_direction([&](const at::Tensor& v) { return linearization->jvp_y(v); }, gradient, eta,
                                                   options_.products, precondition);
    const auto evaluate = [&](double t) {
      LinePoint p{t, 0, 0, sum_of(y, -t, along.p), {}};
      p.gradients = oracle.inner(x, p.y, batch);
      p.loss = p.gradients.value.item<double>();
      p.slope = -dot_of(p.gradients.y, along.p);
      return p;
    };
    const LinePoint here{0, solution.loss, -dot_of(gradient, along.p), y, {}};
    const LinePoint next = here.slope < 0 ? strong_wolfe(evaluate, here, along.first, search) : here;
    const bool level = std::abs(next.loss - here.loss) <= search.rounding * std::abs(here.loss);
    if (next.t == 0 || (level && !(norm_of(next.gradients.y) < solution.stationarity))) {
      stuck = true;
      break;
    }
    solution.previous = y;
    y = next.y;
  }
  solution.y = y;
  conclude(solution, options_.tolerance, stuck);
  return solution;
}

}  // namespace bilevel
