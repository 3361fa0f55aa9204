// y ← y − t d,  d = Ĥ ∂y g, where Ĥ is the inverse Hessian that the last pairs s = Δy, z = Δ∂y g imply over Ĥ₀ = γ M⁻¹,
// γ = ⟨s, z⟩ / ⟨z, M⁻¹ z⟩ (M = I where the problem offers no preconditioner), and t, tried from 1 on, satisfies
// the strong Wolfe conditions, so that ⟨s, z⟩ > 0 on convex and nonconvex losses alike.
#include "bilevel/inner/lbfgs.h"

#include <cmath>
#include <deque>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"
#include "bilevel/inner/line_search.h"
#include "bilevel/inner/solver_helpers.h"

namespace bilevel {
namespace {

using Preconditioner = Problem::Preconditioner;

struct Pair {
  at::Tensor s, z;
  double sz;
};

at::Tensor direction(const at::Tensor& gradient, const std::deque<Pair>& pairs, const Preconditioner& precondition) {
  at::Tensor d = gradient.clone();
  std::vector<double> alphas(pairs.size());
  for (size_t i = pairs.size(); i-- > 0;) {
    alphas[i] = dot_of(pairs[i].s, d) / pairs[i].sz;
    add_scaled(d, -alphas[i], pairs[i].z);
  }
  if (precondition) d = precondition(d);
  if (!pairs.empty()) {
    const Pair& last = pairs.back();
    scale(d, last.sz / dot_of(last.z, precondition ? precondition(last.z) : last.z));
  } else if (!precondition) {
    scale(d, 1 / std::max(1.0, norm_of(d)));  // no scale is known yet
  }
  for (size_t i = 0; i < pairs.size(); ++i) {
    add_scaled(d, alphas[i] - dot_of(pairs[i].z, d) / pairs[i].sz, pairs[i].s);
  }
  return d;
}

}  // namespace

std::vector<std::string> LbfgsOptions::violations() const {
  std::vector<std::string> list;
  if (max_iterations < 0) list.push_back(fmt::format("steps = {} must not be negative", max_iterations));
  if (!(tolerance > 0)) list.push_back(fmt::format("tolerance = {} must be positive", tolerance));
  if (memory < 1) list.push_back(fmt::format("history = {} must be at least 1", memory));
  return list;
}

void read(Section& section, LbfgsOptions& options) {
  section.read("steps", options.max_iterations);
  section.read("tolerance", options.tolerance);
  section.read("history", options.memory);
  section.check(options.violations());
}

Lbfgs::Lbfgs(LbfgsOptions options) : options_(options) {
  for (const auto& violation : options_.violations()) throw Error("Lbfgs: " + violation + ".");
}

at::Tensor Lbfgs::step_size(const Problem& /*problem*/, const at::Tensor& /*x*/) const { refuse_step_size(name()); }

InnerSolution Lbfgs::solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                           const TrajectoryPolicy& policy) const {
  refuse_trajectory(policy, name());
  require_free(oracle.problem(), name());
  require_loss(oracle.problem(), name());
  const at::NoGradGuard no_grad;
  const Preconditioner precondition = oracle.problem().inner_preconditioner(x);
  const Batch batch = whole_batch(start, slice);

  LineSearchOptions search;
  search.max_evaluations = options_.max_evaluations;
  search.rounding = loss_rounding(x);  // may hide a decrease near the optimum
  LinePoint at_y{0, 0, 0, start.y.detach(), oracle.inner(x, start.y.detach(), batch)};
  at_y.loss = at_y.gradients.value.item<double>();
  double norm = norm_of(at_y.gradients.y);
  InnerSolution solution;
  solution.initial_stationarity = norm;
  solution.previous = at_y.y;
  std::deque<Pair> pairs;
  bool stuck = false;
  while (norm > options_.tolerance && solution.steps < options_.max_iterations && std::isfinite(norm + at_y.loss)) {
    at::Tensor d = direction(at_y.gradients.y, pairs, precondition);
    at_y.slope = -dot_of(at_y.gradients.y, d);
    if (!(at_y.slope < 0)) {
      pairs.clear();
      d = direction(at_y.gradients.y, pairs, precondition);
      at_y.slope = -dot_of(at_y.gradients.y, d);
    }
    const auto evaluate = [&](double t) {
      LinePoint p{t, 0, 0, sum_of(at_y.y, -t, d), {}};
      p.gradients = oracle.inner(x, p.y, batch);
      p.loss = p.gradients.value.item<double>();
      p.slope = -dot_of(p.gradients.y, d);
      return p;
    };
    at_y.t = 0;
    LinePoint next = strong_wolfe(evaluate, at_y, 1.0, search);
    if (next.t == 0) {
      if (pairs.empty()) {
        stuck = true;
        break;
      }
      pairs.clear();  // a stale curvature may be the reason: once more along the plain direction
      continue;
    }
    Pair pair{sum_of(next.y, -1, at_y.y), sum_of(next.gradients.y, -1, at_y.gradients.y), 0};
    pair.sz = dot_of(pair.s, pair.z);
    if (pair.sz > search.rounding * norm_of(pair.s) * norm_of(pair.z)) {
      pairs.push_back(std::move(pair));
      if (static_cast<int64_t>(pairs.size()) > options_.memory) pairs.pop_front();
    }
    solution.previous = at_y.y;
    at_y = std::move(next);
    norm = norm_of(at_y.gradients.y);
    ++solution.steps;
  }
  solution.y = at_y.y;
  solution.loss = at_y.loss;
  solution.stationarity = norm;
  conclude(solution, options_.tolerance, stuck);
  return solution;
}

}  // namespace bilevel
