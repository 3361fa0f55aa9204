#include "bilevel/problem/constraint.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

/// min ½‖w − v‖² over w ≥ 0, Σ w = 1: w = max(v − θ, 0). With u the entries of v in falling order, ρ is the largest j with
/// u_j − (Σ_{i≤j} u_i − 1) / j > 0, and θ = (Σ_{i≤ρ} u_i − 1) / ρ (Duchi, Shalev-Shwartz, Singer & Chandra 2008, Figure 1).
at::Tensor project_to_simplex(const at::Tensor& part) {
  at::Tensor v = part.to(at::kDouble);
  // A point of the simplex, but for the rounding of its elements, is its own projection: otherwise the shift would take the
  // elements that are smaller than that rounding to zero, from where a rule that multiplies never leads back.
  const double rounding =
      part.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
  if ((v.min() >= 0).item<bool>() && std::abs(v.sum().item<double>() - 1) <= 4 * rounding) return part;
  // In double, and shifted so that the largest entry is 0: the projection does not change, and large entries do not cancel.
  v = v - v.max();
  const at::Tensor u = std::get<0>(v.sort(/*dim=*/0, /*descending=*/true));
  const at::Tensor j = at::arange(1, v.size(0) + 1, v.options());
  const at::Tensor theta = (u.cumsum(0) - 1) / j;
  // u_1 − θ_1 = 1 > 0, so ρ ≥ 1, except where v is not a number: the result then is none either.
  const at::Tensor rho = (u > theta).sum().clamp_min(1);
  return (v - theta.index_select(0, rho.sub(1).unsqueeze(0))).clamp_min(0).to(part.scalar_type());
}

}  // namespace

at::Tensor Constraint::project(const at::Tensor& part) const {
  const at::NoGradGuard no_grad;
  switch (kind) {
    case Kind::kNone: return part;
    case Kind::kBox:
      require(lower <= upper,
              fmt::format("Constraint::project: the box from {} to {} is empty; expected lower ≤ upper.", lower, upper));
      return part.clamp(lower, upper);
    case Kind::kSimplex:
      require(
          part.dim() == 1 && part.size(0) > 0,
          fmt::format(
              "Constraint::project: a simplex needs a flat part with at least one element, not {} dimensions and {} elements.",
              part.dim(), part.numel()));
      return project_to_simplex(part);
  }
  return part;
}

}  // namespace bilevel
