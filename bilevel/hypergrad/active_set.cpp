#include "bilevel/hypergrad/active_set.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "bilevel/core/error.h"
#include "bilevel/problem/inner_constraints.h"

namespace bilevel {
namespace {

at::Tensor vector_of(const at::Tensor& value, const at::Tensor& y, const char* name) {
  if (!value.defined()) return {};
  require(value.numel() == 1 || (value.dim() == 1 && value.size(0) == y.size(0)),
          fmt::format("Problem::inner_constraints: {} should be a scalar or [{}] as y, got [{}].", name, y.size(0),
                      fmt::join(value.sizes(), ", ")));
  return value.to(y.options()).reshape({-1}).expand({y.size(0)});
}

double largest(const at::Tensor& v) { return v.defined() && v.numel() > 0 ? v.detach().abs().max().item<double>() : 0.0; }

std::string names(const Problem& problem, const at::Tensor& which) {
  const at::Tensor found = which.nonzero().reshape({-1}).cpu();
  std::vector<std::string> list;
  for (int64_t i = 0; i < std::min<int64_t>(found.size(0), 5); ++i) {
    list.push_back(problem.inner_layout().element_name(found[i].item<int64_t>()));
  }
  const int64_t more = found.size(0) - static_cast<int64_t>(list.size());
  return fmt::format("{}{}", fmt::join(list, ", "), more > 0 ? fmt::format(" and {} more", more) : "");
}

}  // namespace

ActiveSet::ActiveSet(const Problem& problem, const at::Tensor& x, const at::Tensor& y_given, Linearization& r, double tolerance)
    : r_(r) {
  const at::AutoGradMode grad_mode(true);
  const at::Tensor x_leaf = leaf(x), y = y_given.detach(), zero = at::zeros_like(y);
  const InnerConstraints given = problem.inner_constraints(x_leaf);
  const at::Tensor lower = vector_of(given.lower, y, "lower"), upper = vector_of(given.upper, y, "upper");
  const at::Tensor l1 = vector_of(given.l1, y, "l1"), E = given.equality, e = given.equality_rhs;
  require(E.defined() == e.defined() && (!E.defined() || (E.dim() == 2 && E.size(1) == y.size(0) && e.sizes() == E.sizes().slice(0, 1))),
          fmt::format("Problem::inner_constraints: equality should be [m, {}] and equality_rhs [m]; both are needed.", y.size(0)));

  // Where y lies.
  const double size = largest(y);
  const at::Tensor never = at::zeros_like(y, y.options().dtype(at::kBool));
  const auto meets = [&](const at::Tensor& given_bound) {
    if (!given_bound.defined()) return never;
    const at::Tensor bound = given_bound.detach();  // infinite: none
    return bound.isfinite().logical_and((y - bound).abs().le(tolerance * (size + bound.abs())));
  };
  const at::Tensor at_lower = meets(lower), at_upper = meets(upper);
  const at::Tensor weights = l1.defined() ? l1.detach() : zero;
  const at::Tensor at_zero = weights.gt(0).logical_and(y.abs().le(tolerance * size));
  const at::Tensor held = at_lower.logical_or(at_upper).logical_or(at_zero);
  free_ = held.logical_not().to(y.scalar_type());
  held_count_ = held.sum().item<int64_t>();

  // The multipliers: zᵢ = 0 on F.
  const at::Tensor residual = r_.residual();
  const at::Tensor sign = y.sign() * free_;
  at::Tensor force = zero, lambda, pseudo_inverse;
  if (E.defined()) {
    const auto [U, S, V] = at::linalg_svd(E.detach() * free_, /*full_matrices=*/false);
    const double unit = y.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                       : static_cast<double>(std::numeric_limits<float>::epsilon());
    const at::Tensor independent = S > 10 * unit * static_cast<double>(y.size(0)) * largest(S);
    if (S.size(0) < E.size(0) || !independent.all().item<bool>()) {
      kink_ = fmt::format("The {} equalities on y are not independent on the {} coordinates that are free, so that y* has no derivative.",
                          E.size(0), y.size(0) - held_count_);
    }
    V_ = V;
    pseudo_inverse = (V.t() * at::where(independent, 1 / S, at::zeros_like(S))).mm(U.t());  // of E_F, [dy, m]
    lambda = -pseudo_inverse.t().mv(residual + weights * sign);
    force = E.detach().t().mv(lambda);
  }
  const at::Tensor z = residual + force;

  // How strongly a coordinate is held where it is. At a lower bound, moving up costs z plus l1's slope on that side.
  const auto sided = [](const at::Tensor& bound, const at::Tensor& at_its_kink) {
    const at::Tensor s = bound.detach().sign();
    return at::where(s == 0, at_its_kink, s);
  };
  const at::Tensor one = at::ones_like(y), infinite = at::full_like(y, std::numeric_limits<double>::infinity());
  const at::Tensor by_l1 = weights - z.abs();
  at::Tensor margin = at::where(at_zero, by_l1, infinite);
  if (lower.defined()) margin = at::where(at_lower, z + weights * sided(lower, one), margin);
  if (upper.defined()) margin = at::where(at_upper, -z - weights * sided(upper, -one), margin);
  margin = at::where(at_lower.logical_and(at_upper), infinite, margin);
  const double scale = std::max({largest(residual), largest(weights), largest(force)});
  const at::Tensor weak = held.logical_and(margin.le(tolerance * scale));
  if (kink_.empty() && weak.any().item<bool>()) {
    kink_ = fmt::format(
        "Strict complementarity fails at {}: there y lies on a bound or at zero, and the multiplier that would hold it is not above {:.0e} of "
        "the largest; y*(x) has a kink here, and no derivative.",
        names(problem, weak), tolerance);
  }

  // r̂ apart from P r, over x.
  at::Tensor c = zero;
  if (lower.defined()) c = at::where(at_lower, lower, c);
  if (upper.defined()) c = at::where(at_upper.logical_and(at_lower.logical_not()), upper, c);
  c = at::where(at_zero.logical_and(by_l1 > tolerance * scale), zero, c);
  at::Tensor gradient = l1.defined() ? l1 * sign : zero;
  if (E.defined()) gradient = gradient + E.t().mv(lambda);
  at::Tensor beside_r = project(gradient) + (1 - free_) * (y - c);
  if (E.defined()) beside_r = beside_r + pseudo_inverse.mv(E.mv(free_ * y + (1 - free_) * c) - e);
  by_x_ = Jacobian(beside_r, {x_leaf});
}

at::Tensor ActiveSet::beside(const at::Tensor& v) const { return v - project(v); }

at::Tensor ActiveSet::project(const at::Tensor& v) const {
  const at::Tensor on_free = v * free_;
  return V_.defined() ? on_free - on_free.matmul(V_.t()).matmul(V_) : on_free;
}

at::Tensor ActiveSet::residual() { return project(r_.residual()) + by_x_.output(); }

at::Tensor ActiveSet::jvp_y(const at::Tensor& v) { return project(r_.jvp_y(v)) + beside(v); }

Vjp ActiveSet::vjp(const at::Tensor& w) {
  Vjp both = r_.vjp(project(w));
  both.y = both.y + beside(w);
  if (w.dim() == 1) {
    both.x = both.x + by_x_.pull(w)[0];
  } else {
    std::vector<at::Tensor> rows;
    for (const at::Tensor& row : w.unbind(0)) rows.push_back(by_x_.pull(row)[0]);
    both.x = both.x + at::stack(rows);
  }
  return both;
}

at::Tensor ActiveSet::jvp_x(const at::Tensor& u) {
  const at::Tensor along_r = project(r_.jvp_x(u));
  if (u.dim() == 1) return along_r + by_x_.push(0, u);
  std::vector<at::Tensor> rows;
  for (const at::Tensor& row : u.unbind(0)) rows.push_back(by_x_.push(0, row));
  return along_r + at::stack(rows);
}

at::Tensor ActiveSet::gauss_newton(const at::Tensor& v) { return project(r_.gauss_newton(v)) + beside(v); }

}  // namespace bilevel
