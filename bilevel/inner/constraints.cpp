#include "bilevel/inner/constraints.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

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

at::Tensor of_length(const at::Tensor& given, const at::Tensor& like, const char* name) {
  if (!given.defined()) return {};
  require(given.numel() == 1 || (given.dim() == 1 && given.size(0) == like.size(0)),
          fmt::format("Problem::inner_constraints: {} has {} elements; expected one, or {} as y.", name, given.numel(),
                      like.size(0)));
  return given.detach().to(like.options()).reshape({-1}).expand({like.size(0)}).contiguous();
}

}  // namespace

ProximalMap::ProximalMap(const InnerConstraints& c, const at::Tensor& y_like)
    : lower_(of_length(c.lower, y_like, "lower")),
      upper_(of_length(c.upper, y_like, "upper")),
      l1_(of_length(c.l1, y_like, "l1")) {
  const int64_t dy = y_like.size(0);
  require(!l1_.defined() || l1_.ge(0).all().item<bool>(), "Problem::inner_constraints: an l1 penalty is negative.");
  require(!lower_.defined() || !upper_.defined() || lower_.le(upper_).all().item<bool>(),
          "Problem::inner_constraints: a lower bound is above its upper bound.");
  require(c.equality.defined() == c.equality_rhs.defined(),
          "Problem::inner_constraints: equality and equality_rhs belong together, and one is missing.");
  if (!c.equality.defined() || c.equality.numel() == 0) return;
  A_ = c.equality.detach().to(y_like.options());
  b_ = c.equality_rhs.detach().to(y_like.options()).reshape({-1});
  require(A_.dim() == 2 && A_.size(1) == dy && b_.size(0) == A_.size(0),
          fmt::format("Problem::inner_constraints: equality should be [m, {}] with m right-hand sides, got {} elements and {}.",
                      dy, A_.numel(), b_.numel()));
}

namespace {

// The elementwise map in one loop, in place; null: none.
template <class T>
void move(T* y, int64_t size, T eta, const T* l1, const T* lower, const T* upper) {
  for (int64_t j = 0; j < size; ++j) {
    if (l1 != nullptr) y[j] -= std::clamp(y[j], -eta * l1[j], eta * l1[j]);
    if (lower != nullptr && y[j] < lower[j]) y[j] = lower[j];
    if (upper != nullptr && y[j] > upper[j]) y[j] = upper[j];
  }
}

template <class T>
const T* values_of(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr<T>() : nullptr;
}

}  // namespace

at::Tensor ProximalMap::separable(const at::Tensor& v, double eta) const {
  const bool direct = v.is_cpu() && v.dim() == 1;
  if (direct && (v.scalar_type() == at::kDouble || v.scalar_type() == at::kFloat)) {
    const at::Tensor y = v.detach().clone(at::MemoryFormat::Contiguous);
    if (v.scalar_type() == at::kDouble) {
      move(y.mutable_data_ptr<double>(), y.numel(), eta, values_of<double>(l1_), values_of<double>(lower_), values_of<double>(upper_));
    } else {
      move(y.mutable_data_ptr<float>(), y.numel(), static_cast<float>(eta), values_of<float>(l1_), values_of<float>(lower_),
           values_of<float>(upper_));
    }
    return y;
  }
  at::Tensor y = v;
  if (l1_.defined()) y = y - at::clamp(y, -eta * l1_, eta * l1_);
  if (lower_.defined()) y = at::maximum(y, lower_);
  if (upper_.defined()) y = at::minimum(y, upper_);
  return y;
}

double ProximalMap::penalty(const at::Tensor& y) const { return l1_.defined() ? dot_of(l1_, y.abs()) : 0.0; }

double ProximalMap::infeasibility(const at::Tensor& y) const {
  return A_.defined() ? norm_of(A_.mv(y) - b_) : 0.0;
}

at::Tensor ProximalMap::residual(const at::Tensor& y, const at::Tensor& gradient, double eta) const {
  return (y - apply(y - eta * gradient, eta)) / eta;
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
    // An element is free where the map moves with v.
    at::Tensor free = at::ones_like(y);
    if (l1_.defined()) free = free * at::where(l1_ > 0, y.ne(0).to(y.dtype()), free);
    if (lower_.defined()) free = free * (y > lower_);
    if (upper_.defined()) free = free * (y < upper_);
    at::Tensor S = (A_ * free).mm(A_.t());
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
