#include "bilevel/inner/constraints.h"

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>
#include <ATen/EmptyTensor.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"

// Without equalities the map is elementwise: the minimiser of ½(y − v)² + ηλ|y| is v − clamp(v, −ηλ, ηλ), and that of a convex
// function of one variable on an interval is the free one, clamped.
//
// With them, y(μ) = P(v − Aᵀμ) maximises the concave dual  φ(μ) = ½‖y − v‖² + η h(y) + μᵀ(A y − b)  where  A y(μ) = b. Its
// gradient is ρ = A y(μ) − b, and −A D Aᵀ a generalised Hessian, D = 1 for elements that are free.

namespace bilevel {
namespace {

// As vector [dy] of doubles; empty where it was not given.
std::vector<double> of_length(const at::Tensor& given, int64_t dy, const char* name) {
  if (!given.defined()) return {};
  require(given.numel() == 1 || (given.dim() == 1 && given.size(0) == dy),
          fmt::format("Problem::inner_constraints: {} has {} elements; expected one, or {} as y.", name, given.numel(), dy));
  const at::Tensor all = given.detach().to(at::kCPU, at::kDouble).reshape({-1}).expand({dy}).contiguous();
  return {all.const_data_ptr<double>(), all.const_data_ptr<double>() + dy};
}

// f(element of the limits, a_j, b_j) in double. What is not on the CPU goes there and back.
template <class Limits, class F>
at::Tensor elementwise(const std::vector<Limits>& limits, const at::Tensor& a, const at::Tensor& b, F f) {
  if (!a.is_cpu()) return elementwise(limits, a.cpu(), b.cpu(), f).to(a.device());
  const at::Tensor out = at::detail::empty_cpu(a.sizes(), a.scalar_type()), first = a.contiguous(), second = b.contiguous();
  AT_DISPATCH_FLOATING_TYPES(a.scalar_type(), "ProximalMap", [&] {
    const scalar_t *const from = first.const_data_ptr<scalar_t>(), *const with = second.const_data_ptr<scalar_t>();
    scalar_t* const to = out.mutable_data_ptr<scalar_t>();
    for (size_t j = 0; j < limits.size(); ++j) {
      to[j] = static_cast<scalar_t>(f(limits[j], static_cast<double>(from[j]), static_cast<double>(with[j])));
    }
  });
  return out;
}

}  // namespace

ProximalMap::ProximalMap(const InnerConstraints& c, const at::Tensor& y_like) {
  const int64_t dy = y_like.size(0);
  const auto l1 = of_length(c.l1, dy, "l1"), lower = of_length(c.lower, dy, "lower"), upper = of_length(c.upper, dy, "upper");
  limits_.resize(static_cast<size_t>(dy));
  for (size_t j = 0; j < limits_.size(); ++j) {
    Limits& at = limits_[j];
    if (!l1.empty()) at.l1 = l1[j];
    if (!lower.empty()) at.lower = lower[j];
    if (!upper.empty()) at.upper = upper[j];
    require(at.l1 >= 0, "Problem::inner_constraints: an l1 penalty is negative.");
    require(at.lower <= at.upper, "Problem::inner_constraints: a lower bound is above its upper bound.");
  }
  require(c.equality.defined() == c.equality_rhs.defined(),
          "Problem::inner_constraints: equality and equality_rhs belong together, and one is missing.");
  if (!c.equality.defined() || c.equality.numel() == 0) return;
  A_ = c.equality.detach().to(y_like.options());
  b_ = c.equality_rhs.detach().to(y_like.options()).reshape({-1});
  require(A_.dim() == 2 && A_.size(1) == dy && b_.size(0) == A_.size(0),
          fmt::format("Problem::inner_constraints: equality should be [m, {}] with m right-hand sides, got {} elements and {}.",
                      dy, A_.numel(), b_.numel()));
}

double ProximalMap::Limits::clamped(double y) const { return y < lower ? lower : y > upper ? upper : y; }

at::Tensor ProximalMap::separable(const at::Tensor& v, double eta) const {
  return elementwise(limits_, v, v, [eta](const Limits& at, double w, double) {
    return at.clamped(w - std::clamp(w, -eta * at.l1, eta * at.l1));
  });
}

double ProximalMap::penalty(const at::Tensor& y) const {
  const at::Tensor w = y.detach().to(at::kCPU, at::kDouble).contiguous();
  double sum = 0;
  for (size_t j = 0; j < limits_.size(); ++j) {
    if (limits_[j].l1 > 0) sum += limits_[j].l1 * std::abs(w.const_data_ptr<double>()[j]);
  }
  return sum;
}

at::Tensor ProximalMap::free(const at::Tensor& y, double eta) const {
  return elementwise(limits_, y, y, [eta](const Limits& at, double w, double) {
    return (eta * at.l1 == 0 || w != 0) && w > at.lower && w < at.upper ? 1.0 : 0.0;
  });
}

at::Tensor ProximalMap::penalised(const at::Tensor& y, const at::Tensor& gradient) const {
  return elementwise(limits_, y, gradient, [](const Limits& at, double w, double slope) {
    return w > 0 ? slope + at.l1 : w < 0 ? slope - at.l1 : slope;
  });
}

at::Tensor ProximalMap::face(const at::Tensor& y, const at::Tensor& v) const {
  return elementwise(limits_, y, v, [](const Limits& at, double w, double tried) {
    return at.clamped(at.l1 > 0 && w * tried <= 0 ? 0.0 : tried);
  });
}

double ProximalMap::infeasibility(const at::Tensor& y) const { return A_.defined() ? norm_of(A_.mv(y) - b_) : 0.0; }

at::Tensor ProximalMap::residual(const at::Tensor& y, const at::Tensor& gradient, double eta) const {
  const at::Tensor r = sum_of(y, -1, apply(sum_of(y, -eta, gradient), eta));
  scale(r, 1 / eta);
  return r;
}

at::Tensor ProximalMap::apply(const at::Tensor& v, double eta) const {
  const at::NoGradGuard no_grad;
  if (!A_.defined()) return separable(v, eta);
  const double epsilon = v.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                        : static_cast<double>(std::numeric_limits<float>::epsilon());
  at::Tensor mu = at::zeros_like(b_);
  at::Tensor y = separable(v, eta), rho = A_.mv(y) - b_;
  const auto dual = [&](const at::Tensor& at_mu, const at::Tensor& at_y, const at::Tensor& at_rho) {
    return 0.5 * (at_y - v).square().sum().item<double>() + eta * penalty(at_y) + dot_of(at_mu, at_rho);
  };
  double phi = dual(mu, y, rho);
  const double rounding = 4 * epsilon * (norm_of(A_) * norm_of(v) + norm_of(b_));
  double reach = 1;
  for (int k = 0; k < 200; ++k) {
    const double distance = norm_of(rho);
    if (!(distance > rounding)) break;
    at::Tensor S = (A_ * free(y, eta)).mm(A_.t());
    // Where too few elements are free the dual is linear along a part of ρ: there, further and further until some are.
    const at::Tensor newton = at::linalg_pinv(S, 1e-12, /*hermitian=*/true).mv(rho), flat = rho - S.mv(newton);
    const bool linear = norm_of(flat) > 1e-8 * distance;
    const at::Tensor step = linear ? newton + reach / A_.square().sum() * flat : newton;
    const double rise = dot_of(step, rho);
    bool moved = false;
    for (double t = 1; t > 1e-12 && !moved; t /= 2) {
      const at::Tensor mu_t = mu + t * step, y_t = separable(v - mu_t.matmul(A_), eta), rho_t = A_.mv(y_t) - b_;
      const double phi_t = dual(mu_t, y_t, rho_t);
      moved = phi_t >= phi + 1e-4 * t * rise || norm_of(rho_t) <= 0.5 * distance;
      if (!moved) continue;
      if (linear) reach = t == 1 ? 4 * reach : 1;
      mu = mu_t;
      y = y_t;
      rho = rho_t;
      phi = phi_t;
    }
    if (!moved) break;
  }
  return y;
}

}  // namespace bilevel
