// H s = −r(y₀),   y = y₀ + s;   again with r(y) against rounding.
#include "bilevel/inner/closed_form.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <functional>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/core/vectors.h"
#include "bilevel/inner/solver_helpers.h"

namespace bilevel {
namespace {

using Solve = std::function<at::Tensor(const at::Tensor&)>;

// b ↦ H⁻¹ b by a factorisation; none where H is singular, or symmetric and not positive definite.
Solve factorised(Linearization& linearization, int64_t dy, const at::TensorOptions& like) {
  const at::Tensor rows = linearization.jvp_y(at::eye(dy, like));  // row i: H eᵢ, a column of H
  if (linearization.symmetric()) {
    const auto [factor, info] = at::linalg_cholesky_ex((rows + rows.t()) / 2);
    if (info.item<int64_t>() != 0) return {};
    return [factor = factor](const at::Tensor& b) { return at::cholesky_solve(b.unsqueeze(1), factor).squeeze(1); };
  }
  const auto [LU, pivots, info] = at::linalg_lu_factor_ex(rows.t().contiguous());
  if (info.item<int64_t>() != 0) return {};
  return [LU = LU, pivots = pivots](const at::Tensor& b) { return at::linalg_lu_solve(LU, pivots, b.unsqueeze(1)).squeeze(1); };
}

// CG on H s = b; an undefined tensor at negative curvature.
at::Tensor by_products(Linearization& linearization, const at::Tensor& b, const ClosedFormOptions& options,
                       const Problem::Preconditioner& precondition) {
  const double target = options.tolerance * norm_of(b);
  at::Tensor s = at::zeros_like(b), r = b, z = precondition ? precondition(r) : r, d = z;
  double rz = dot_of(r, z);
  for (int64_t k = 0; k < options.products && norm_of(r) > target; ++k) {
    const at::Tensor Hd = linearization.jvp_y(d);
    const double curvature = dot_of(d, Hd);
    if (!(curvature > 0)) return {};
    s = s + rz / curvature * d;
    r = r - rz / curvature * Hd;
    z = precondition ? precondition(r) : r;
    const double rz_new = dot_of(r, z);
    d = z + rz_new / rz * d;
    rz = rz_new;
  }
  return s;
}

}  // namespace

std::vector<std::string> ClosedFormOptions::violations() const {
  std::vector<std::string> list;
  if (max_dim < 0) list.push_back(fmt::format("max_dim = {} must not be negative", max_dim));
  if (products < 1) list.push_back(fmt::format("products = {} must be at least 1", products));
  if (!(tolerance > 0)) list.push_back(fmt::format("tolerance = {} must be positive", tolerance));
  return list;
}

void read(Section& section, ClosedFormOptions& options) {
  section.read("max_dim", options.max_dim);
  section.read("products", options.products);
  section.read("tolerance", options.tolerance);
  section.check(options.violations());
}

ClosedForm::ClosedForm(ClosedFormOptions options) : options_(options) {
  for (const auto& violation : options_.violations()) throw Error("ClosedForm: " + violation + ".");
}

at::Tensor ClosedForm::step_size(const Problem& /*problem*/, const at::Tensor& /*x*/) const { refuse_step_size(name()); }

InnerSolution ClosedForm::solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                                const TrajectoryPolicy& policy) const {
  refuse_trajectory(policy, name());
  require_free(oracle.problem(), name());
  const at::NoGradGuard no_grad;
  const Batch batch = whole_batch(start, slice);
  const at::Tensor y0 = start.y.detach();
  const int64_t dy = y0.size(0);
  auto linearization = oracle.linearize_inner(x, y0, batch);

  InnerSolution solution;
  solution.y = solution.previous = y0;
  solution.loss = linearization->value().item<double>();
  solution.stationarity = solution.initial_stationarity = norm_of(linearization->residual());
  if (!std::isfinite(solution.loss + solution.stationarity)) {
    conclude(solution, 0.0, false);
    return solution;
  }

  // H v at the start against H v away from it.
  const bool is_double = y0.scalar_type() == at::kDouble;
  Draw draw = Stream(0, "closed-form check").at(0);
  const at::Tensor v = draw.normal({dy}, y0.scalar_type()).to(y0.device());
  const at::Tensor away = y0 + (1 + y0.abs().max()) * draw.normal({dy}, y0.scalar_type()).to(y0.device());
  const at::Tensor here = linearization->jvp_y(v), there = oracle.linearize_inner(x, away, batch)->jvp_y(v);
  const double scale = norm_of(here), change = norm_of(here - there);
  const bool map = oracle.problem().has_optimality_map();
  require(change <= (is_double ? 1e-5 : 1e-2) * scale,
          fmt::format("closed-form: the inner {} is not {} in y: along one direction its curvature changes by {:.2g} of itself "
                      "between two points. Use solver = \"newton-cg\" or \"lbfgs\".",
                      map ? "optimality map" : "loss", map ? "linear" : "quadratic", change / scale));

  const bool dense = dy <= options_.max_dim;
  require(
      dense || linearization->symmetric(),
      fmt::format("closed-form: an optimality map that is not symmetric needs its matrix; y has {} elements, above max_dim = {}.",
                  dy, options_.max_dim));
  const Problem::Preconditioner precondition = dense ? nullptr : oracle.problem().inner_preconditioner(x);
  const Solve factors = dense ? factorised(*linearization, dy, y0.options()) : nullptr;
  for (int refinement = 0; refinement < 3; ++refinement) {
    const at::Tensor r = linearization->residual();
    at::Tensor s;
    if (factors) s = factors(r);
    if (!dense) s = by_products(*linearization, r, options_, precondition);
    if (!s.defined() || !std::isfinite(norm_of(s))) {
      solution.status = Status::kIndefinite;
      solution.message =
          "The curvature of the inner loss is singular or not positive definite, so that there is no single minimum; add a "
          "ridge.";
      return solution;
    }
    const at::Tensor y = solution.y - s;
    auto next = oracle.linearize_inner(x, y, batch);
    const double stationarity = norm_of(next->residual());
    if (refinement > 0 && !(stationarity < solution.stationarity)) break;
    solution.y = y;
    solution.loss = next->value().item<double>();
    solution.stationarity = stationarity;
    linearization = std::move(next);
    ++solution.steps;
  }

  // A backward error of the size of rounding is all that a solve can promise.
  conclude(solution, std::max(options_.tolerance, is_double ? 1e-9 : 1e-4) * (solution.initial_stationarity + scale), true);
  return solution;
}

}  // namespace bilevel
