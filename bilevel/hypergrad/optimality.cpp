// With ρ's own small graph over (x, y, g), g = r(x, y):
//
//   ∂y r̂ v = ρ_y v + ρ_g (∂y r v)      (∂y r̂)ᵀ w = ρ_yᵀ w + (∂y r)ᵀ ρ_gᵀ w
//   ∂x r̂ u = ρ_x u + ρ_g (∂x r u)      (∂x r̂)ᵀ w = ρ_xᵀ w + (∂x r)ᵀ ρ_gᵀ w
//
// and, for an elementwise ρ with ρ_g = diag d, ρ_y = diag e, the same of r̂/d.
#include "bilevel/hypergrad/optimality.h"

#include <ATen/ATen.h>

#include "bilevel/core/stream.h"
#include "bilevel/oracle/autograd.h"

namespace bilevel {
namespace {

constexpr size_t kX = 0, kY = 1, kG = 2;  // the inputs of ρ

class Elementwise final : public Linearization {
 public:
  Elementwise(Linearization& r, Jacobian rho, const at::Tensor& d, const at::Tensor& e)
      : r_(r), rho_(std::move(rho)), inverse_(1 / d), shift_(e / d), by_x_(rho_.pull(inverse_)[kX].ne(0).any().item<bool>()) {}

  at::Tensor value() override { return r_.value(); }
  at::Tensor residual() override { return rho_.output() * inverse_; }
  at::Tensor grad_x() override { return r_.grad_x(); }
  at::Tensor jvp_y(const at::Tensor& v) override { return at::addcmul(r_.jvp_y(v), v, shift_); }
  Vjp vjp(const at::Tensor& w) override {
    Vjp both = r_.vjp(w);
    both.y = at::addcmul(both.y, w, shift_);
    if (by_x_) both.x = both.x + rowwise(w * inverse_, [&](const at::Tensor& row) { return rho_.pull(row)[kX]; });
    return both;
  }
  at::Tensor jvp_x(const at::Tensor& u) override {
    const at::Tensor product = r_.jvp_x(u);
    return by_x_ ? product + inverse_ * rowwise(u, [&](const at::Tensor& row) { return rho_.push(kX, row); }) : product;
  }
  at::Tensor gauss_newton(const at::Tensor& v) override { return at::addcmul(r_.gauss_newton(v), v, shift_); }
  bool symmetric() const override { return r_.symmetric(); }

 private:
  Linearization& r_;
  Jacobian rho_;
  const at::Tensor inverse_, shift_;
  const bool by_x_;
};

class Composed final : public Linearization {
 public:
  Composed(Linearization& r, Jacobian rho) : r_(r), rho_(std::move(rho)) {}

  at::Tensor value() override { return r_.value(); }
  at::Tensor residual() override { return rho_.output(); }
  at::Tensor grad_x() override { return r_.grad_x(); }
  at::Tensor jvp_y(const at::Tensor& v) override { return along_y(v, r_.jvp_y(v)); }
  Vjp vjp(const at::Tensor& w) override {
    if (w.dim() == 2) {
      std::vector<at::Tensor> ys, xs;
      for (const at::Tensor& row : w.unbind(0)) {
        Vjp one = vjp(row);
        ys.push_back(std::move(one.y));
        xs.push_back(std::move(one.x));
      }
      return {at::stack(ys), at::stack(xs)};
    }
    const auto pulled = rho_.pull(w);
    const Vjp through_r = r_.vjp(pulled[kG]);
    return {pulled[kY] + through_r.y, pulled[kX] + through_r.x};
  }
  at::Tensor jvp_x(const at::Tensor& u) override {
    return rowwise(u, [&](const at::Tensor& row) { return rho_.push(kX, row) + rho_.push(kG, r_.jvp_x(row)); });
  }
  at::Tensor gauss_newton(const at::Tensor& v) override { return along_y(v, r_.gauss_newton(v)); }
  bool symmetric() const override { return false; }

 private:
  at::Tensor along_y(const at::Tensor& v, const at::Tensor& dr) {
    if (v.dim() == 1) return rho_.push(kY, v) + rho_.push(kG, dr);
    std::vector<at::Tensor> rows;
    for (int64_t i = 0; i < v.size(0); ++i) rows.push_back(rho_.push(kY, v[i]) + rho_.push(kG, dr[i]));
    return at::stack(rows);
  }
  Linearization& r_;
  Jacobian rho_;
};

}  // namespace

Optimality optimality(const InnerSolver& solver, const Problem& problem, const at::Tensor& x, const at::Tensor& y,
                      Linearization& r) {
  const at::AutoGradMode grad_mode(true);
  const at::Tensor x_leaf = leaf(x), y_leaf = leaf(y), g = leaf(r.residual());
  const at::Tensor output = solver.residual(problem, x_leaf, y_leaf, g);
  if (output.is_same(g)) return {};
  Jacobian rho(output, {x_leaf, y_leaf, g});

  // An elementwise ρ multiplies what is pulled back through it by d and e; any other would have to know this z.
  const at::NoGradGuard no_grad;
  const at::Tensor z = Stream(0, "elementwise").at(0).normal({y.size(0)}).to(y.options());
  const auto ones = rho.pull(at::ones_like(y)), of_z = rho.pull(z);
  const at::Tensor &d = ones[kG], &e = ones[kY];
  const double tolerance = y.scalar_type() == at::kDouble ? 1e-12 : 1e-5;
  const bool elementwise = at::allclose(of_z[kG], d * z, tolerance, 0) && at::allclose(of_z[kY], e * z, tolerance, 0);
  if (elementwise && d.gt(0).all().item<bool>()) return {std::make_unique<Elementwise>(r, std::move(rho), d, e), 1 / d};
  return {std::make_unique<Composed>(r, std::move(rho)), {}};
}

}  // namespace bilevel
