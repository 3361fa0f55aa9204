// With ΔY, ΔR [m, dy] the differences of the last iterates y and of their r (Walker & Ni 2011, "type II"):
//
//   γ = argmin ‖r − ΔRᵀ γ‖,   y ← y − β r − (ΔY − β ΔR)ᵀ γ
#include "bilevel/inner/anderson.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <deque>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"
#include "bilevel/inner/solver_helpers.h"

namespace bilevel {
namespace {

struct Iterate {
  at::Tensor y, r;
  double loss = 0, norm = 0;
  bool finite() const { return std::isfinite(norm); }
};

// γ by the eigenvalues of the small matrix ΔR ΔRᵀ, rows scaled to 1; directions that rounding cannot tell apart are left out.
at::Tensor least_squares(const at::Tensor& dR, const at::Tensor& r) {
  const at::Tensor lengths = at::linalg_vector_norm(dR, 2, {1}), unit = dR / lengths.unsqueeze(1);
  const auto [values, vectors] = at::linalg_eigh(unit.mm(unit.t()).to(at::kDouble));
  const double rounding = r.scalar_type() == at::kDouble ? 1e-14 : 1e-6;
  const at::Tensor inverse = at::where(values > rounding * values.max(), 1 / values, at::zeros_like(values));
  const at::Tensor projected = vectors.t().mv(unit.mv(r).to(at::kDouble));
  return vectors.mv(inverse * projected).to(r.scalar_type()) / lengths;
}

}  // namespace

std::vector<std::string> AndersonOptions::violations() const {
  std::vector<std::string> found;
  if (!(lr > 0 && std::isfinite(lr))) found.push_back(fmt::format("lr = {} must be finite and positive", lr));
  if (steps < 0) found.push_back(fmt::format("steps = {} must not be negative", steps));
  if (!(tolerance > 0)) found.push_back(fmt::format("tolerance = {} must be positive", tolerance));
  if (history < 1) found.push_back(fmt::format("history = {} must be at least 1", history));
  return found;
}

void read(Section& section, AndersonOptions& options) {
  section.read("lr", options.lr);
  section.read("steps", options.steps);
  section.read("tolerance", options.tolerance);
  section.read("history", options.history);
  section.check(options.violations());
}

Anderson::Anderson(AndersonOptions options) : options_(options) {
  const auto found = options_.violations();
  require(found.empty(), fmt::format("Anderson: {}.", fmt::join(found, "; ")));
}

at::Tensor Anderson::step_size(const Problem& /*problem*/, const at::Tensor& /*x*/) const { refuse_step_size(name()); }

InnerSolution Anderson::solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                              const TrajectoryPolicy& policy) const {
  refuse_trajectory(policy, name());
  require_free(oracle.problem(), name());
  const at::NoGradGuard no_grad;
  const Batch batch = whole_batch(start, slice);
  const auto at_point = [&](const at::Tensor& y) {
    const Gradients g = oracle.inner(x, y, batch);
    return Iterate{y, g.y, g.value.item<double>(), norm_of(g.y)};
  };

  double beta = options_.lr;
  Iterate now = at_point(start.y.detach()), best = now;
  InnerSolution solution;
  solution.initial_stationarity = now.norm;
  solution.previous = now.y;
  std::deque<at::Tensor> dY, dR;
  bool stuck = false;
  while (best.norm > options_.tolerance && solution.steps < options_.steps && best.finite()) {
    at::Tensor step = beta * now.r;
    if (!dR.empty()) {
      const at::Tensor Y = at::stack(std::vector<at::Tensor>(dY.begin(), dY.end()));
      const at::Tensor R = at::stack(std::vector<at::Tensor>(dR.begin(), dR.end()));
      step = step + (Y - beta * R).t().mv(least_squares(R, now.r));
    }
    Iterate next = at_point(now.y - step);
    ++solution.steps;
    if (!next.finite() || next.norm > 10 * best.norm) {
      dY.clear();
      dR.clear();
      beta /= 2;
      now = best;
      continue;
    }
    if (at::equal(next.r, now.r)) {  // nothing left to learn: rounding, or a step along which r is constant
      stuck = true;
      break;
    }
    dY.push_back(next.y - now.y);
    dR.push_back(next.r - now.r);
    if (static_cast<int64_t>(dY.size()) > options_.history) {
      dY.pop_front();
      dR.pop_front();
    }
    if (next.norm < best.norm) {
      solution.previous = best.y;
      best = next;
    }
    now = std::move(next);
  }
  solution.y = best.y;
  solution.loss = best.loss;
  solution.stationarity = best.norm;
  conclude(solution, options_.tolerance, stuck);
  return solution;
}

}  // namespace bilevel
