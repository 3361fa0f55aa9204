// y ← y − t d,  d = Ĥ ∂y g, where Ĥ is the inverse Hessian that the last pairs s = Δy, z = Δ∂y g imply over Ĥ₀ = γ M⁻¹,
// γ = ⟨s, z⟩ / ⟨z, M⁻¹ z⟩ (M = I where the problem offers no preconditioner). t = 1, ½, ¼ … until
// g(y − t d) ≤ g(y) − 10⁻⁴ t ⟨∂y g, d⟩ (Armijo).
#include "bilevel/inner/lbfgs.h"

#include <cmath>
#include <deque>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

using Preconditioner = Problem::Preconditioner;

struct Pair {
  at::Tensor s, z;
  double sz;
};

double inner_product(const at::Tensor& a, const at::Tensor& b) { return a.dot(b).item<double>(); }

at::Tensor direction(const at::Tensor& gradient, const std::deque<Pair>& pairs, const Preconditioner& precondition) {
  at::Tensor d = gradient.clone();
  std::vector<double> alphas(pairs.size());
  for (size_t i = pairs.size(); i-- > 0;) {
    alphas[i] = inner_product(pairs[i].s, d) / pairs[i].sz;
    d.sub_(pairs[i].z, alphas[i]);
  }
  if (precondition) d = precondition(d);
  if (!pairs.empty()) {
    const Pair& last = pairs.back();
    d.mul_(last.sz / inner_product(last.z, precondition ? precondition(last.z) : last.z));
  } else if (!precondition) {
    d.div_(std::max(1.0, d.norm().item<double>()));  // no scale is known yet
  }
  for (size_t i = 0; i < pairs.size(); ++i) {
    d.add_(pairs[i].s, alphas[i] - inner_product(pairs[i].z, d) / pairs[i].sz);
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

at::Tensor Lbfgs::step_size(const Problem& /*problem*/, const at::Tensor& /*x*/) const {
  throw Error("lbfgs has no step size for a one-step estimator or Neumann's scale; give `scale`, or use a rule such as sgd.");
}

InnerSolution Lbfgs::solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                           const TrajectoryPolicy& policy) const {
  require(!policy.keep, "lbfgs keeps no trajectory to unroll; use the implicit estimator, or a rule such as sgd.");
  const at::NoGradGuard no_grad;
  const Preconditioner precondition = oracle.problem().inner_preconditioner(x);
  Batch batch;
  batch.step = start.first_step;
  batch.slice = slice;

  // Rounding of the loss may hide a decrease near the optimum.
  const double slack = (x.scalar_type() == at::kDouble ? 1e-15 : 1e-7);
  at::Tensor y = start.y.detach();
  Gradients at_y = oracle.inner(x, y, batch);
  double loss = at_y.value.item<double>();
  double norm = at_y.y.norm().item<double>();
  InnerSolution solution;
  solution.initial_stationarity = norm;
  solution.previous = y;
  std::deque<Pair> pairs;
  bool stuck = false;
  while (norm > options_.tolerance && solution.steps < options_.max_iterations && std::isfinite(norm + loss)) {
    at::Tensor d = direction(at_y.y, pairs, precondition);
    double slope = inner_product(at_y.y, d);
    if (!(slope > 0)) {
      pairs.clear();
      d = direction(at_y.y, pairs, precondition);
      slope = inner_product(at_y.y, d);
    }
    double t = 1;
    at::Tensor trial;
    Gradients at_trial;
    double trial_loss = 0;
    int64_t halvings = 0;
    for (; halvings <= options_.max_halvings; ++halvings, t /= 2) {
      trial = y - t * d;
      at_trial = oracle.inner(x, trial, batch);
      trial_loss = at_trial.value.item<double>();
      if (trial_loss <= loss - 1e-4 * t * slope + slack * std::abs(loss)) break;
    }
    if (halvings > options_.max_halvings) {
      if (pairs.empty()) {
        stuck = true;
        break;
      }
      pairs.clear();  // a stale curvature may be the reason: once more along the plain direction
      continue;
    }
    Pair pair{trial - y, at_trial.y - at_y.y, 0};
    pair.sz = inner_product(pair.s, pair.z);
    if (pair.sz > slack * pair.s.norm().item<double>() * pair.z.norm().item<double>()) {
      pairs.push_back(std::move(pair));
      if (static_cast<int64_t>(pairs.size()) > options_.memory) pairs.pop_front();
    }
    solution.previous = y;
    y = trial;
    at_y = at_trial;
    loss = trial_loss;
    norm = at_y.y.norm().item<double>();
    ++solution.steps;
  }
  solution.y = y;
  solution.loss = loss;
  solution.stationarity = norm;
  if (!std::isfinite(norm + loss)) {
    solution.status = Status::kNonFinite;
    solution.message = "The inner loss or its gradient is not finite.";
  } else if (norm <= options_.tolerance) {
    solution.status = Status::kConverged;
    solution.message = fmt::format("Stationarity {:.2g} after {} iterations.", norm, solution.steps);
  } else {
    solution.message = stuck ? fmt::format("No further decrease within rounding; stationarity {:.2g}.", norm)
                             : fmt::format("Stationarity {:.2g} after all {} iterations.", norm, solution.steps);
  }
  return solution;
}

}  // namespace bilevel
