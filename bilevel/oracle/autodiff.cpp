// For a loss r = ∂y g. With the graph of r kept, one backward pass from r along w gives
//
//   (∂y r)ᵀ w = H w,   (∂x r)ᵀ w
//
// and ∂x r · u = ∂y ⟨∂x g, u⟩ is one backward pass from ∂x g. Gauss–Newton replaces H by
//
//   Jᵀ (∂zz L) J + ∂yy L|z,   g(x, y) = L(x, y, z(y)),   J = ∂z/∂y,
//
// where J v comes from differentiating Jᵀu by u, so that no forward mode is needed.
//
// For an optimality map r given directly the same pass gives (∂y r)ᵀ w and (∂x r)ᵀ w, and the products the other way round come
// from differentiating those two by w, in which they are linear.
#include "bilevel/oracle/autodiff.h"

#include <optional>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bilevel/core/error.h"
#include "bilevel/core/guards.h"
#include "bilevel/oracle/autograd.h"
#include "bilevel/oracle/output_space.h"

namespace bilevel {
namespace {

at::Tensor scalar(const at::Tensor& loss, const char* which) {
  if (!loss.defined() || loss.numel() != 1) {
    throw Error(fmt::format("Problem::{}: expected a scalar, got {}.", which,
                            loss.defined() ? fmt::format("shape [{}]", fmt::join(loss.sizes(), ", ")) : "an undefined tensor"));
  }
  return loss.dim() == 0 ? loss : loss.reshape({});
}

at::Tensor inner_loss(const Problem& problem, const at::Tensor& x, const at::Tensor& y, const Batch& batch) {
  std::optional<SeedGuard> guard;
  if (problem.draws_random_numbers()) guard.emplace(batch.seed);
  return scalar(problem.inner_loss(x, y, batch), "inner_loss");
}

at::Tensor outer_loss(const Problem& problem, const at::Tensor& x, const at::Tensor& y, const Batch& batch) {
  std::optional<SeedGuard> guard;
  if (problem.draws_random_numbers()) guard.emplace(batch.seed);
  return scalar(problem.outer_loss(x, y, batch), "outer_loss");
}

at::Tensor optimality_map(const Problem& problem, const at::Tensor& x, const at::Tensor& y, const Batch& batch) {
  std::optional<SeedGuard> guard;
  if (problem.draws_random_numbers()) guard.emplace(batch.seed);
  const at::Tensor r = problem.optimality_map(x, y, batch);
  if (!r.defined() || r.sizes() != y.sizes()) {
    throw Error(fmt::format("Problem::optimality_map: expected a vector of {} elements like y, got {}.", y.size(0),
                            r.defined() ? fmt::format("shape [{}]", fmt::join(r.sizes(), ", ")) : "an undefined tensor"));
  }
  return r;
}

at::Tensor half_square(const at::Tensor& r) { return r.dot(r) / 2; }

// What a loss and a map given directly have in common: the graph of r over x and y.
class AutodiffLinearization : public Linearization {
 public:
  AutodiffLinearization(const at::Tensor& x, const at::Tensor& y) : x_(leaf(x)), y_(leaf(y)) {}

  at::Tensor residual() override { return residual_.detach(); }

  Vjp vjp(const at::Tensor& w) override {
    if (w.dim() == 1) {
      auto both = gradients(residual_, {y_, x_}, w, /*retain_graph=*/true);
      return {std::move(both[0]), std::move(both[1])};
    }
    std::vector<at::Tensor> ys, xs;
    for (int64_t i = 0; i < w.size(0); ++i) {
      Vjp row = vjp(w[i]);
      ys.push_back(std::move(row.y));
      xs.push_back(std::move(row.x));
    }
    return {at::stack(ys), at::stack(xs)};
  }

 protected:
  // (∂y r)ᵀ v, without the other half of `vjp`.
  at::Tensor transposed_y(const at::Tensor& v) {
    return rowwise(v, [&](const at::Tensor& row) { return gradients(residual_, {y_}, row, /*retain_graph=*/true)[0]; });
  }

  const at::Tensor x_, y_;
  at::Tensor residual_;
};

class LossLinearization final : public AutodiffLinearization {
 public:
  LossLinearization(const Problem& problem, const at::Tensor& x, const at::Tensor& y, Batch batch)
      : AutodiffLinearization(x, y), problem_(problem), batch_(std::move(batch)) {
    const at::AutoGradMode grad_mode(true);
    value_ = inner_loss(problem_, x_, y_, batch_);
    residual_ = gradients(value_, {y_}, {}, /*retain_graph=*/true, /*create_graph=*/true)[0];
  }

  at::Tensor value() override { return value_.detach(); }
  at::Tensor grad_x() override { return differentiable_grad_x().detach(); }
  at::Tensor jvp_y(const at::Tensor& v) override { return transposed_y(v); }

  at::Tensor jvp_x(const at::Tensor& u) override {
    const at::Tensor gx = differentiable_grad_x();
    return rowwise(u, [&](const at::Tensor& row) { return gradients(gx, {y_}, row, /*retain_graph=*/true)[0]; });
  }

  at::Tensor gauss_newton(const at::Tensor& v) override {
    build_outputs();
    return rowwise(v, [&](const at::Tensor& row) {
      const at::Tensor jv = gradients(jt_u_, {u_}, row, /*retain_graph=*/true)[0];
      const at::Tensor hz_jv = gradients(loss_z_, {z_leaf_}, jv, /*retain_graph=*/true)[0];
      return gradients(z_, {y_}, hz_jv, /*retain_graph=*/true)[0] +
             gradients(loss_y_, {y_direct_}, row, /*retain_graph=*/true)[0];
    });
  }

 private:
  const at::Tensor& differentiable_grad_x() {
    if (!grad_x_.defined()) {
      const at::AutoGradMode grad_mode(true);
      grad_x_ = gradients(value_, {x_}, {}, /*retain_graph=*/true, /*create_graph=*/true)[0];
    }
    return grad_x_;
  }

  void build_outputs() {
    if (z_.defined()) return;
    const at::AutoGradMode grad_mode(true);
    std::optional<SeedGuard> guard;
    if (problem_.draws_random_numbers()) guard.emplace(batch_.seed);
    z_ = problem_.inner_outputs(y_, batch_);
    u_ = at::zeros_like(z_, z_.options().requires_grad(false)).requires_grad_(true);
    jt_u_ = gradients(z_, {y_}, u_, /*retain_graph=*/true, /*create_graph=*/true)[0];
    z_leaf_ = leaf(z_);
    y_direct_ = leaf(y_);
    const at::Tensor loss = problem_.inner_loss_of_outputs(x_.detach(), y_direct_, z_leaf_, batch_);
    const auto first = gradients(loss, {z_leaf_, y_direct_}, {}, /*retain_graph=*/true, /*create_graph=*/true);
    loss_z_ = first[0];
    loss_y_ = first[1];
  }

  const Problem& problem_;
  const Batch batch_;
  at::Tensor value_, grad_x_;
  at::Tensor z_, u_, jt_u_, z_leaf_, y_direct_, loss_z_, loss_y_;  // for Gauss–Newton
};

class MapLinearization final : public AutodiffLinearization {
 public:
  MapLinearization(const Problem& problem, const at::Tensor& x, const at::Tensor& y, const Batch& batch)
      : AutodiffLinearization(x, y), symmetric_(problem.optimality_map_is_symmetric()) {
    const at::AutoGradMode grad_mode(true);
    residual_ = optimality_map(problem, x_, y_, batch);
    jacobian_ = Jacobian(residual_, {y_, x_});
  }

  at::Tensor value() override { return half_square(residual_.detach()); }
  at::Tensor grad_x() override { return gradients(residual_, {x_}, residual_.detach(), /*retain_graph=*/true)[0]; }
  at::Tensor jvp_y(const at::Tensor& v) override {
    if (symmetric_) return transposed_y(v);
    return rowwise(v, [&](const at::Tensor& row) { return jacobian_.push(0, row); });
  }
  at::Tensor jvp_x(const at::Tensor& u) override {
    return rowwise(u, [&](const at::Tensor& row) { return jacobian_.push(1, row); });
  }
  at::Tensor gauss_newton(const at::Tensor& /*v*/) override {
    throw Error("Linearization::gauss_newton: Gauss–Newton needs a loss of outputs, and this problem gives its optimality map.");
  }
  bool symmetric() const override { return symmetric_; }

 private:
  const bool symmetric_;
  Jacobian jacobian_;
};

}  // namespace

std::unique_ptr<OutputSpace> AutodiffOracle::output_space(const at::Tensor& x, const at::Tensor& y,
                                                          const OutputSamples& samples) const {
  return autodiff_output_space(problem(), x, y, samples);
}

std::unique_ptr<Linearization> AutodiffOracle::linearize_inner(const at::Tensor& x, const at::Tensor& y,
                                                               const Batch& batch) const {
  check_point(problem(), x, y, "AutodiffOracle::linearize_inner");
  if (problem().has_optimality_map()) return std::make_unique<MapLinearization>(problem(), x, y, batch);
  return std::make_unique<LossLinearization>(problem(), x, y, batch);
}

Gradients AutodiffOracle::inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  if (problem().has_optimality_map()) {
    const at::NoGradGuard no_grad;
    const at::Tensor r = optimality_map(problem(), x.detach(), y.detach(), batch);
    return {half_square(r), r, {}};
  }
  const at::AutoGradMode grad_mode(true);
  const at::Tensor y_leaf = leaf(y);
  const at::Tensor loss = inner_loss(problem(), x.detach(), y_leaf, batch);
  return {loss.detach(), gradients(loss, {y_leaf})[0], {}};
}

Gradients AutodiffOracle::outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  check_point(problem(), x, y, "AutodiffOracle::outer");
  const at::AutoGradMode grad_mode(true);
  const at::Tensor x_leaf = leaf(x), y_leaf = leaf(y);
  const at::Tensor loss = outer_loss(problem(), x_leaf, y_leaf, batch);
  auto both = gradients(loss, {y_leaf, x_leaf});
  return {loss.detach(), both[0], both[1]};
}

at::Tensor AutodiffOracle::inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const at::AutoGradMode grad_mode(true);
  const at::Tensor x_leaf = leaf(x);
  const at::Tensor value = problem().has_optimality_map() ? half_square(optimality_map(problem(), x_leaf, y.detach(), batch))
                                                          : inner_loss(problem(), x_leaf, y.detach(), batch);
  return gradients(value, {x_leaf})[0];
}

at::Tensor AutodiffOracle::inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const at::NoGradGuard no_grad;
  return problem().has_optimality_map() ? half_square(optimality_map(problem(), x, y, batch))
                                        : inner_loss(problem(), x, y, batch);
}

at::Tensor AutodiffOracle::outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const at::NoGradGuard no_grad;
  return outer_loss(problem(), x, y, batch);
}

}  // namespace bilevel
