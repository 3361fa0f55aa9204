#include "bilevel/hypergrad/active_set.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"
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

double unit_of(const at::Tensor& t) {
  return t.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                        : static_cast<double>(std::numeric_limits<float>::epsilon());
}
at::Tensor never(const at::Tensor& y) { return at::zeros_like(y, y.options().dtype(at::kBool)); }
at::Tensor with(const at::Tensor& v, int64_t i, double value) {
  at::Tensor copy = v.clone();
  copy[i].fill_(value);
  return copy;
}

std::string names(const Problem& problem, const at::Tensor& which) {
  const at::Tensor found = which.nonzero().reshape({-1}).cpu();
  std::vector<std::string> list;
  for (int64_t i = 0; i < std::min<int64_t>(found.size(0), 5); ++i) {
    list.push_back(problem.inner_layout().element_name(found[i].item<int64_t>()));
  }
  const int64_t more = found.size(0) - static_cast<int64_t>(list.size());
  return fmt::format("{}{}", fmt::join(list, ", "), more > 0 ? fmt::format(" and {} more", more) : "");
}

// The slope of the l1 penalty of a coordinate that leaves its bound for the inside: that of |y| there, and at zero `at_zero`.
at::Tensor slope(const at::Tensor& bound, double at_zero) {
  const at::Tensor s = bound.sign();
  return at::where(s == 0, at::full_like(s, at_zero), s);
}

constexpr double kDoubtful = 10;  // a multiplier is off by ‖r‖, times how strongly held and free coordinates hang together

}  // namespace

ConstraintVectors::ConstraintVectors(const Problem& problem, const at::Tensor& x, const at::Tensor& y) {
  const InnerConstraints given = problem.inner_constraints(x);
  lower = vector_of(given.lower, y, "lower"), upper = vector_of(given.upper, y, "upper"), l1 = vector_of(given.l1, y, "l1");
  E = given.equality, e = given.equality_rhs;
  require(
      E.defined() == e.defined() &&
          (!E.defined() || (E.dim() == 2 && E.size(1) == y.size(0) && e.sizes() == E.sizes().slice(0, 1))),
      fmt::format("Problem::inner_constraints: equality should be [m, {}] and equality_rhs [m]; both are needed.", y.size(0)));
}

ConstraintVectors ConstraintVectors::detached() const {
  ConstraintVectors c;
  const auto plain = [](const at::Tensor& t) { return t.defined() ? t.detach() : t; };
  c.lower = plain(lower), c.upper = plain(upper), c.l1 = plain(l1), c.E = plain(E), c.e = plain(e);
  return c;
}

HeldSet HeldSet::at(const ConstraintVectors& c, const at::Tensor& y, const at::Tensor& near) {
  const auto meets = [&](const at::Tensor& bound) {  // infinite: none
    return bound.defined() ? bound.isfinite().logical_and((y - bound).abs().le(near)) : never(y);
  };
  HeldSet set;
  set.lower = meets(c.lower);
  set.upper = meets(c.upper).logical_and(set.lower.logical_not());
  set.zero = c.l1.defined() ? c.l1.gt(0).logical_and(y.abs().le(near)) : never(y);
  set.zero = set.zero.logical_and(set.lower.logical_or(set.upper).logical_not());
  set.sign = c.l1.defined() ? y.sign() * c.l1.gt(0) : at::zeros_like(y);
  set.sign = set.sign * set.free();
  return set;
}

HeldSet HeldSet::freed(const ConstraintVectors& c, int64_t i, double z) const {
  HeldSet set = *this;
  double side = z > 0 ? -1.0 : 1.0;
  if (lower[i].item<bool>()) side = slope(c.lower[i], 1.0).item<double>();
  if (upper[i].item<bool>()) side = slope(c.upper[i], -1.0).item<double>();
  for (at::Tensor* part : {&set.lower, &set.upper, &set.zero}) *part = with(*part, i, 0);
  if (c.l1.defined() && c.l1[i].item<double>() > 0) set.sign = with(sign, i, side);
  return set;
}

HeldSet HeldSet::holding(const ConstraintVectors& c, int64_t i, double y) const {
  HeldSet set = *this;
  const double sided = sign[i].item<double>() * y;
  // Of several that y has crossed, the one that it met first.
  const double below = c.lower.defined() ? c.lower[i].item<double>() - y : 0,
               above = c.upper.defined() ? y - c.upper[i].item<double>() : 0;
  const double most = std::max({below, above, -sided});
  at::Tensor& part = -sided == most ? set.zero : below == most ? set.lower : set.upper;
  part = with(part, i, 1);
  set.sign = with(sign, i, 0);
  return set;
}

bool HeldSet::operator==(const HeldSet& other) const {
  return lower.equal(other.lower) && upper.equal(other.upper) && zero.equal(other.zero) && sign.equal(other.sign);
}

at::Tensor pseudo_inverse(const at::Tensor& E_free) {
  return at::linalg_pinv(E_free, 10 * unit_of(E_free) * static_cast<double>(E_free.size(1)));
}

Margins margins(const ConstraintVectors& c, const HeldSet& set, const at::Tensor& y, const at::Tensor& residual) {
  const at::Tensor infinite = at::full_like(y, std::numeric_limits<double>::infinity()),
                   weights = c.l1.defined() ? c.l1 : at::zeros_like(y);
  Margins out;
  at::Tensor of_equalities = at::zeros_like(y);
  if (c.E.defined()) {
    of_equalities = -c.E.t().mv(pseudo_inverse(c.E * set.free()).t().mv(residual + weights * set.sign));
  }
  out.z = residual + of_equalities;
  out.scale = std::max({max_norm_of(residual), max_norm_of(weights), max_norm_of(of_equalities)});

  // At a lower bound, moving up costs z plus l1's slope on that side.
  out.force = at::where(set.zero, weights - out.z.abs(), infinite);
  if (c.lower.defined()) out.force = at::where(set.lower, out.z + weights * slope(c.lower, 1.0), out.force);
  if (c.upper.defined()) out.force = at::where(set.upper, -out.z - weights * slope(c.upper, -1.0), out.force);
  if (c.lower.defined() && c.upper.defined()) out.force = at::where(c.lower == c.upper, infinite, out.force);

  out.slack = at::where(set.sign != 0, set.sign * y, infinite);
  if (c.lower.defined()) out.slack = at::minimum(out.slack, y - c.lower);
  if (c.upper.defined()) out.slack = at::minimum(out.slack, c.upper - y);
  out.slack = at::where(set.held(), infinite, out.slack);
  return out;
}

ActiveSet::ActiveSet(const Problem& problem, const at::Tensor& x, const at::Tensor& y_given, Linearization& r,
                     const KinkTolerance& tolerance)
    : r_(r) {
  const at::AutoGradMode grad_mode(true);
  const at::Tensor x_leaf = leaf(x), y = y_given.detach(), residual = r_.residual();
  const ConstraintVectors given(problem, x_leaf, y), c = given.detached();

  // Where y lies. What is farther from its bound than rounding belongs on it only where a force says so.
  const auto close = [&](double length) {
    at::Tensor size = at::full_like(y, max_norm_of(y));
    for (const at::Tensor* bound : {&c.lower, &c.upper}) {
      if (bound->defined())
        size = at::maximum(size, at::where(bound->isfinite(), bound->abs() + max_norm_of(y), at::zeros_like(y)));
    }
    return at::maximum(tolerance.relative * size, at::full_like(y, length));
  };
  const at::Tensor near = close(0.0), far = close(tolerance.step * tolerance.stationarity);
  HeldSet set = HeldSet::at(c, y, far);
  set = HeldSet::at(c, y, at::where(margins(c, set, y, residual).force > 0, far, near));
  const Margins at_y = margins(c, set, y, residual);
  free_ = set.free();
  held_count_ = set.held().sum().item<int64_t>();

  at::Tensor inverse;
  if (c.E.defined()) {
    const at::Tensor E_free = c.E * free_;
    const auto [U, S, V] = at::linalg_svd(E_free, /*full_matrices=*/false);
    const at::Tensor independent = S > 10 * unit_of(y) * static_cast<double>(y.size(0)) * max_norm_of(S);
    if (S.size(0) < E_free.size(0) || !independent.all().item<bool>()) {
      kink_ = fmt::format(
          "The {} equalities on y are not independent on the {} coordinates that are free, so that y* has no derivative.",
          E_free.size(0), y.size(0) - held_count_);
    }
    V_ = V;
    inverse = pseudo_inverse(E_free);
  }
  const at::Tensor weak = at_y.force.le(tolerance.relative * at_y.scale);
  if (kink_.empty() && weak.any().item<bool>()) {
    kink_ = fmt::format(
        "Strict complementarity fails at {}: there y lies on a bound or at zero, and the multiplier that would hold it is not "
        "above {:.0e} of "
        "the largest; y*(x) has a kink here, and no derivative.",
        names(problem, weak), tolerance.relative);
  }
  const at::Tensor doubtful = at_y.force.le(kDoubtful * tolerance.stationarity);
  if (kink_.empty() && doubtful.any().item<bool>()) {
    doubt_ = fmt::format(
        "At {} y lies on a bound or at zero, and the multiplier that would hold it there is not above {:g} times the ‖r‖ = "
        "{:.2e} that the "
        "inner solve has left: solved further, y may leave.",
        names(problem, doubtful), kDoubtful, tolerance.stationarity);
  }

  // r̂ apart from P r, over x.
  at::Tensor bounds = at::zeros_like(y);
  if (given.lower.defined()) bounds = at::where(set.lower, given.lower, bounds);
  if (given.upper.defined()) bounds = at::where(set.upper, given.upper, bounds);
  at::Tensor gradient = given.l1.defined() ? given.l1 * set.sign : at::zeros_like(y);
  if (c.E.defined()) gradient = gradient + given.E.t().mv(-inverse.t().mv(residual + gradient.detach()));
  at::Tensor beside_r = project(gradient) + (1 - free_) * (y - bounds);
  if (c.E.defined()) beside_r = beside_r + inverse.mv(given.E.mv(free_ * y + (1 - free_) * bounds) - given.e);
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
