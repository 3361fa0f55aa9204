// With y = Y(x, z), T = ∂Y/∂z = P(x) N and s the signs of the free coordinates,
//
//   r̂(x, z) = Nᵀ R,   R = P (r(x, y) + l1 ⊙ s)
//   ∂z r̂ = Tᵀ (∂y r) T,   ∂x r̂ = Tᵀ (∂x r + ∂y r ∂x Y) + Nᵀ ∂x R|r
#include "bilevel/hypergrad/active_set_newton.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"

namespace bilevel {
namespace {

constexpr int64_t kMostChanges = 60;  // of the active set, in one solve

at::Tensor vector_of_zeros(const at::Tensor& like, int64_t size) { return at::zeros({size}, like.options()); }

/// All that a surface and the constraints owe to x at one (x, z).
struct Moving {
  Moving(const Surface& surface, const at::Tensor& x, const at::Tensor& z)
      : surface_(surface), x_leaf(leaf(x)), at_x(on(x_leaf)) {
    const at::AutoGradMode grad_mode(true);
    graph = surface.y(at_x, z.detach());
    y = graph.detach();
    Y = Jacobian(graph, {x_leaf});
  }
  Jacobian R(const at::Tensor& r) const {
    const at::AutoGradMode grad_mode(true);
    return {surface_.project(at_x, at_x.l1.defined() ? r + at_x.l1 * surface_.set().sign : r), {x_leaf}};
  }
  // (∂x of the l1 penalty and of Y in g)ᵀ, given ∂y g
  at::Tensor gradient(const at::Tensor& g_y) const {
    const at::AutoGradMode grad_mode(true);
    return gradients(graph.dot(g_y) + penalty(), {x_leaf}, {}, /*retain_graph=*/true)[0];
  }
  at::Tensor penalty() const {
    return at_x.l1.defined() ? (at_x.l1 * surface_.set().sign).dot(graph) : at::zeros({}, y.options());
  }

 private:
  ConstraintVectors on(const at::Tensor& x) const {
    const at::AutoGradMode grad_mode(true);
    return surface_.constraints(x);
  }
  const Surface& surface_;

 public:
  at::Tensor x_leaf;
  ConstraintVectors at_x;
  at::Tensor graph, y;
  Jacobian Y;
};

class OnSurface final : public Linearization {
 public:
  OnSurface(const Surface& surface, std::unique_ptr<Moving> moving, std::unique_ptr<Linearization> r)
      : surface_(surface),
        moving_(std::move(moving)),
        fixed_(moving_->at_x.detached()),
        r_(std::move(r)),
        R_(moving_->R(r_->residual())) {}

  at::Tensor value() override { return r_->value() + moving_->penalty().detach(); }
  at::Tensor residual() override { return surface_.pull(R_.output()); }
  at::Tensor grad_x() override { return r_->grad_x() + moving_->gradient(r_->residual()); }
  at::Tensor jvp_y(const at::Tensor& v) override { return back(r_->jvp_y(forth(v))); }
  Vjp vjp(const at::Tensor& w) override {
    const Vjp both = r_->vjp(forth(w));
    const at::Tensor by_y = rowwise(both.y, [&](const at::Tensor& row) { return moving_->Y.pull(row)[0]; });
    const at::Tensor by_R = rowwise(surface_.lift(w), [&](const at::Tensor& row) { return R_.pull(row)[0]; });
    return {back(both.y), both.x + by_y + by_R};
  }
  at::Tensor jvp_x(const at::Tensor& u) override {
    const at::Tensor dy = rowwise(u, [&](const at::Tensor& row) { return moving_->Y.push(0, row); });
    const at::Tensor dR = rowwise(u, [&](const at::Tensor& row) { return R_.push(0, row); });
    return back(r_->jvp_x(u) + r_->jvp_y(dy)) + surface_.pull(dR);
  }
  at::Tensor gauss_newton(const at::Tensor& v) override { return back(r_->gauss_newton(forth(v))); }
  bool symmetric() const override { return r_->symmetric(); }

 private:
  at::Tensor forth(const at::Tensor& v) const { return surface_.project(fixed_, surface_.lift(v)); }
  at::Tensor back(const at::Tensor& v) const { return surface_.pull(surface_.project(fixed_, v)); }
  const Surface& surface_;
  std::unique_ptr<Moving> moving_;
  ConstraintVectors fixed_;
  std::unique_ptr<Linearization> r_;
  Jacobian R_;
};

class SurfaceOracle final : public Oracle {
 public:
  SurfaceOracle(const Problem& problem, const Surface& surface, const Oracle& base)
      : Oracle(problem), surface_(surface), base_(base) {}
  std::unique_ptr<Linearization> linearize_inner(const at::Tensor& x, const at::Tensor& z, const Batch& batch) const override {
    auto moving = std::make_unique<Moving>(surface_, x, z);
    auto r = base_.linearize_inner(x, moving->y, batch);
    return std::make_unique<OnSurface>(surface_, std::move(moving), std::move(r));
  }
  Gradients inner(const at::Tensor& x, const at::Tensor& z, const Batch& batch) const override {
    const ConstraintVectors c = surface_.constraints(x);
    Gradients g = base_.inner(x, surface_.y(c, z), batch);
    g.value = g.value + penalty(c, z);
    if (c.l1.defined()) g.y = g.y + c.l1 * surface_.set().sign;
    g.y = surface_.pull(surface_.project(c, g.y));
    return g;
  }
  Gradients outer(const at::Tensor& x, const at::Tensor& z, const Batch& batch) const override {
    const Moving moving(surface_, x, z);
    Gradients f = base_.outer(x, moving.y, batch);
    f.x = f.x + moving.Y.pull(f.y)[0];
    f.y = surface_.pull(surface_.project(moving.at_x.detached(), f.y));
    return f;
  }
  at::Tensor inner_grad_x(const at::Tensor& x, const at::Tensor& z, const Batch& batch) const override {
    const Moving moving(surface_, x, z);
    return base_.inner_grad_x(x, moving.y, batch) + moving.gradient(base_.inner(x, moving.y, batch).y);
  }
  at::Tensor inner_value(const at::Tensor& x, const at::Tensor& z, const Batch& batch) const override {
    const ConstraintVectors c = surface_.constraints(x);
    return base_.inner_value(x, surface_.y(c, z), batch) + penalty(c, z);
  }
  at::Tensor outer_value(const at::Tensor& x, const at::Tensor& z, const Batch& batch) const override {
    return base_.outer_value(x, surface_.y(surface_.constraints(x), z), batch);
  }

 private:
  at::Tensor penalty(const ConstraintVectors& c, const at::Tensor& z) const {
    return c.l1.defined() ? (c.l1 * surface_.set().sign).dot(surface_.y(c, z)) : at::zeros({}, z.options());
  }
  const Surface& surface_;
  const Oracle& base_;
};

/// What certificates ask of a problem beside its oracle.
class SurfaceProblem final : public Problem {
 public:
  explicit SurfaceProblem(const Surface& surface) : surface_(surface), base_(surface.problem()) {
    layout_.add("z", {surface.dim()});
  }
  const Layout& outer_layout() const override { return base_.outer_layout(); }
  const Layout& inner_layout() const override { return layout_; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& z, const Batch& batch) const override {
    const ConstraintVectors c = surface_.constraints(x);
    const at::Tensor y = surface_.y(c, z), g = base_.inner_loss(x, y, batch);
    return c.l1.defined() ? g + (c.l1 * surface_.set().sign).dot(y) : g;
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& z, const Batch& batch) const override {
    return base_.outer_loss(x, surface_.y(surface_.constraints(x), z), batch);
  }
  bool has_optimality_map() const override { return base_.has_optimality_map(); }
  bool optimality_map_is_symmetric() const override { return base_.optimality_map_is_symmetric(); }
  double inner_strong_convexity(const at::Tensor& x) const override { return base_.inner_strong_convexity(x); }
  bool draws_random_numbers() const override { return base_.draws_random_numbers(); }
  at::Tensor initial_outer() const override { return base_.initial_outer(); }
  int64_t inner_samples() const override { return base_.inner_samples(); }
  int64_t outer_samples() const override { return base_.outer_samples(); }

 private:
  const Surface& surface_;
  const Problem& base_;
  Layout layout_;
};

}  // namespace

Surface::Surface(const Problem& problem, const at::Tensor& x, HeldSet set, const at::Tensor& y_like)
    : problem_(problem), set_(std::move(set)), like_(y_like.detach()), free_(set_.free()), index_(free_.nonzero().reshape({-1})) {
  const at::NoGradGuard no_grad;
  dim_ = index_.size(0);
  const ConstraintVectors c = constraints(x);
  if (!c.E.defined()) return;
  equalities_ = c.E.size(0);
  independent_ = equalities_ <= dim_;
  if (independent_) {
    std::tie(reflectors_, tau_) = at::geqrf(c.E.index_select(1, index_).t());
    const at::Tensor diagonal = reflectors_.diagonal().abs();
    const double rounding = 10 * rounding_unit(like_) * static_cast<double>(like_.size(0)) * max_norm_of(diagonal);
    independent_ = (diagonal > rounding).all().item<bool>();
  }
  dim_ = independent_ ? dim_ - equalities_ : 0;
}

at::Tensor Surface::lift(const at::Tensor& z) const {
  at::Tensor on_free = z;
  if (equalities_ > 0) {
    const at::Tensor rows = z.dim() == 1 ? z.unsqueeze(0) : z;
    const at::Tensor padded = at::cat({at::zeros({equalities_, rows.size(0)}, z.options()), rows.t()});
    on_free = at::ormqr(reflectors_, tau_, padded).t();
    if (z.dim() == 1) on_free = on_free.squeeze(0);
  }
  std::vector<int64_t> sizes = z.sizes().vec();
  sizes.back() = like_.size(0);
  return at::zeros(sizes, z.options()).index_copy(-1, index_, on_free);
}

at::Tensor Surface::pull(const at::Tensor& v) const {
  const at::Tensor on_free = v.index_select(-1, index_);
  if (equalities_ == 0) return on_free;
  const at::Tensor rows = v.dim() == 1 ? on_free.unsqueeze(0) : on_free;
  const at::Tensor turned =
      at::ormqr(reflectors_, tau_, rows.t(), /*left=*/true, /*transpose=*/true).narrow(0, equalities_, dim_).t();
  return v.dim() == 1 ? turned.squeeze(0) : turned;
}

ConstraintVectors Surface::constraints(const at::Tensor& x) const { return {problem_, x, like_}; }

at::Tensor Surface::y(const ConstraintVectors& c, const at::Tensor& z) const {
  at::Tensor y = lift(z);
  if (c.lower.defined()) y = at::where(set_.lower, c.lower, y);
  if (c.upper.defined()) y = at::where(set_.upper, c.upper, y);
  return c.E.defined() ? y - pseudo_inverse(c.E * free_).mv(c.E.mv(y) - c.e) : y;
}

at::Tensor Surface::project(const ConstraintVectors& c, const at::Tensor& v) const {
  const at::Tensor on_free = v * free_;
  if (!c.E.defined()) return on_free;
  const at::Tensor E_free = c.E * free_, inverse = pseudo_inverse(E_free);
  return v.dim() == 1 ? on_free - inverse.mv(E_free.mv(on_free)) : on_free - on_free.mm(E_free.t()).mm(inverse.t());
}

OnActiveSet::OnActiveSet(const EstimatorInput& in, HeldSet set)
    : in_(in), surface_(std::make_unique<Surface>(in.oracle.problem(), in.x, std::move(set), in.solution.y)) {
  const at::NoGradGuard no_grad;
  problem_ = std::make_unique<SurfaceProblem>(*surface_);
  oracle_ = std::make_unique<SurfaceOracle>(*problem_, *surface_, in.oracle);
  solution_.y = surface_->independent() ? surface_->pull(in.solution.y) : vector_of_zeros(in.solution.y, 0);
  solution_.status = in.solution.status;
  solution_.stationarity = in.solution.stationarity;
  input_ =
      std::make_unique<EstimatorInput>(EstimatorInput{*oracle_, in.solver, in.x, solution_, in.inner_batch, in.outer_batch, {}});
}

OnActiveSet::~OnActiveSet() = default;

at::Tensor OnActiveSet::y(const at::Tensor& x, const at::Tensor& z) const {
  const at::NoGradGuard no_grad;
  return surface_->y(surface_->constraints(x), z);
}

Margins OnActiveSet::margins(const at::Tensor& x, const at::Tensor& y) const {
  const at::NoGradGuard no_grad;
  Batch batch = in_.inner_batch;
  batch.samples = at::Tensor();
  return bilevel::margins(surface_->constraints(x), surface_->set(), y, in_.oracle.inner(x, y, batch).y);
}

ActiveSetNewton::ActiveSetNewton(const EstimatorInput& in, InnerNewtonOptions options) : in_(in), options_(options) {
  if (!in.oracle.problem().has_inner_constraints()) {
    first_.newton = std::make_unique<InnerNewton>(in, options);
    return;
  }
  const at::NoGradGuard no_grad;
  const at::Tensor& y = in.solution.y;
  const ConstraintVectors c(in.oracle.problem(), in.x, y);
  adopt(HeldSet::at(c, y, at::full_like(y, KinkTolerance::of(y.scalar_type()) * max_norm_of(y))));
}

const EstimatorInput& ActiveSetNewton::input() const { return now_->on ? now_->on->input() : in_; }

void ActiveSetNewton::adopt(const HeldSet& set) {
  if (first_.on && first_.on->surface().set() == set) {
    now_ = &first_;
    return;
  }
  now_ = settled_ ? &other_ : &first_;
  if (now_->on && now_->on->surface().set() == set) return;
  now_->newton.reset();
  now_->on = std::make_unique<OnActiveSet>(in_, set);
  now_->newton = std::make_unique<InnerNewton>(now_->on->input(), options_);
}

bool ActiveSetNewton::solve(const at::Tensor& x, const at::Tensor& y, double target) {
  if (!now_->on) {
    if (newton().solve(x, y, target)) {
      y_ = newton().place().y;
      return true;
    }
    y_ = newton().place().y;
    why_ = fmt::format("Newton's method does not get from ‖r‖ = {:.2e} to a solution of the inner problem near by.",
                       in_.solution.stationarity);
    return false;
  }
  now_ = &first_;
  y_ = y;
  for (int64_t change = 0; change < kMostChanges; ++change) {
    const OnActiveSet& on = *now_->on;
    const HeldSet set = on.surface().set();
    if (!on.surface().independent()) {
      why_ = "the equalities on y are not independent on the coordinates that are free.";
      return false;
    }
    const ConstraintVectors c = on.surface().constraints(x);
    at::Tensor z = on.surface().pull(y_);
    const at::Tensor from = on.y(x, z);
    if (dim() > 0) {
      if (!newton().solve(x, z, target)) {
        why_ = fmt::format("Newton's method does not get from ‖r‖ = {:.2e} to a solution on the active set near by.",
                           in_.solution.stationarity);
        return false;
      }
      z = newton().place().y;
    }
    const at::Tensor to = on.y(x, z);
    const Margins there = on.margins(x, to);
    const double rounding = 32 * rounding_unit(y);

    const at::Tensor crossed = there.slack.lt(-rounding * max_norm_of(to));
    if (crossed.any().item<bool>()) {
      const at::Tensor before = on.margins(x, from).slack.clamp_min(0);
      const at::Tensor share = at::where(crossed, before / (before - there.slack), at::full_like(to, 2.0));
      const int64_t i = share.argmin().item<int64_t>();
      y_ = from + share[i] * (to - from);
      adopt(set.holding(c, i, to[i].item<double>()));
      continue;
    }
    y_ = to;
    const int64_t weakest = there.force.argmin().item<int64_t>();
    if (there.force[weakest].item<double>() < -rounding * there.scale) {
      adopt(set.freed(c, weakest, there.z[weakest].item<double>()));
      continue;
    }
    settled_ = true;
    return true;
  }
  why_ = fmt::format("{} changes of the active set did not lead to that of y*.", kMostChanges);
  return false;
}

}  // namespace bilevel
