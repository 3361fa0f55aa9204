// y ← y − t (∂y r)⁻¹ r, t halved until ‖r‖ falls. ∂y r may be that of an earlier y: a chord is as good as Newton's step while it
// shortens r tenfold, and costs one gradient.
#include "bilevel/hypergrad/inner_newton.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "bilevel/core/stream.h"
#include "bilevel/core/vectors.h"
#include "bilevel/hypergrad/optimality.h"

namespace bilevel {
namespace {

constexpr int64_t kBlock = 64;  // products at a time

class DenseInverse final : public InnerInverse {
 public:
  explicit DenseInverse(const at::Tensor& J) { std::tie(LU_, pivots_, std::ignore) = at::linalg_lu_factor_ex(J); }
  at::Tensor apply(const at::Tensor& v, double) const override { return solve(v, false); }
  at::Tensor apply_transposed(const at::Tensor& v, double) const override { return solve(v, true); }

 private:
  at::Tensor solve(const at::Tensor& v, bool adjoint) const {
    const at::Tensor b = v.to(at::kDouble).unsqueeze(1);
    return at::linalg_lu_solve(LU_, pivots_, b, /*left=*/true, adjoint).squeeze(1).to(v.scalar_type());
  }
  at::Tensor LU_, pivots_;
};

class CgInverse final : public InnerInverse {
 public:
  CgInverse(const InnerPlace& place, Problem::Preconditioner precondition, int64_t products) : products_(products) {
    A_.dim = place.y.size(0);
    A_.apply = [&place](const at::Tensor& v) { return place.jvp_y(v); };
    A_.precondition = std::move(precondition);
  }
  at::Tensor apply(const at::Tensor& v, double tolerance) const override {
    CgOptions options;
    options.iterations = products_;
    options.tolerance = tolerance;
    return Cg(options).solve(A_, v, {}).solution;
  }
  at::Tensor apply_transposed(const at::Tensor& v, double tolerance) const override { return apply(v, tolerance); }

 private:
  int64_t products_;
  Operator A_;
};

}  // namespace

double rounding_unit(const at::Tensor& t) {
  return t.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                        : static_cast<double>(std::numeric_limits<float>::epsilon());
}

InnerPlace::InnerPlace(const EstimatorInput& in, at::Tensor x_at, at::Tensor y_at)
    : x(std::move(x_at)), y(std::move(y_at)), in_(in), batch_(in.inner_batch) {
  batch_.samples = at::Tensor();
  const at::NoGradGuard no_grad;
  const at::Tensor own = in.oracle.inner(x, y, batch_).y;
  r = in.solver.residual(in.oracle.problem(), x, y, own);
  if (r.is_same(own)) return;
  linearization();
  if (scale_.defined()) r = scale_ * r;
}

Linearization& InnerPlace::linearization() const {
  if (given_ == nullptr) {
    given_ = in_.oracle.linearize_inner(x, y, batch_);
    Optimality moved = optimality(in_.solver, in_.oracle.problem(), x, y, *given_);
    linearization_ = std::move(moved.linearization);
    scale_ = moved.scale;
  }
  return linearization_ ? *linearization_ : *given_;
}

at::Tensor InnerPlace::matrix() const {
  const int64_t d = y.size(0);
  at::Tensor columns = at::empty({d, d}, y.options().dtype(at::kDouble));
  for (int64_t from = 0; from < d; from += kBlock) {
    const int64_t size = std::min(kBlock, d - from);
    at::Tensor unit = at::zeros({size, d}, y.options());
    unit.diagonal(from).fill_(1);
    columns.narrow(0, from, size).copy_(jvp_y(unit));
  }
  return symmetric() ? 0.5 * (columns + columns.t()) : columns.t();
}

InnerNewton::InnerNewton(const EstimatorInput& in, InnerNewtonOptions options)
    : in_(in), options_(options), dense_(in.solution.y.size(0) <= options.dense_dim) {}

void InnerNewton::renew() {
  renewed_ = true;
  if (dense_) {
    J_ = place_->matrix();
    eigenvalues_ = eigenvectors_ = idle_ = at::Tensor();
    at::Tensor regular = J_;
    if (place_->symmetric() && std::isfinite(J_.abs().sum().item<double>())) {
      std::tie(eigenvalues_, eigenvectors_) = at::linalg_eigh(J_, "L");
      const double largest = eigenvalues_.abs().max().item<double>();
      const at::Tensor flat =
          eigenvalues_.abs().le(4 * rounding_unit(place_->y) * std::sqrt(static_cast<double>(J_.size(0))) * largest);
      if (largest > 0 && flat.any().item<bool>()) {
        const at::Tensor N = eigenvectors_.index_select(1, flat.nonzero().squeeze(1));
        if (is_idle(N)) {
          idle_ = N;
          regular = J_ + largest * N.mm(N.t());
        }
      }
    }
    inverse_ = std::make_unique<DenseInverse>(regular);
  } else {
    held_ = std::make_unique<InnerPlace>(in_, place_->x, place_->y);
    inverse_ = std::make_unique<CgInverse>(*held_, in_.oracle.problem().inner_preconditioner(place_->x), options_.products);
  }
}

bool InnerNewton::is_idle(const at::Tensor& directions) const {
  const at::Tensor N = directions.to(place_->y.scalar_type()).t();
  const double share = std::max(1e-6, 100 * rounding_unit(place_->y) * std::sqrt(static_cast<double>(place_->y.size(0))));
  const auto blind = [&](const at::Tensor& v) { return norm_of(N.mv(v)) <= share * norm_of(v); };
  for (int64_t i = 0; i < 2; ++i) {
    Draw draw = Stream(0, "idle directions").at(i);
    const at::Tensor u = draw.normal({place_->x.size(0)}).to(place_->x.options());
    const at::Tensor p = draw.normal({place_->y.size(0)}).to(place_->y.options());
    const InnerPlace there(in_, place_->x, place_->y + (0.1 * (1 + norm_of(place_->y)) / norm_of(p)) * p);
    if (!blind(place_->jvp_x(u)) || !blind(there.jvp_x(u)) || !blind(there.r)) return false;
    if (!blind(in_.oracle.outer(there.x, there.y, in_.outer_batch).y)) return false;
  }
  return true;
}

std::unique_ptr<InnerPlace> InnerNewton::beside(const InnerPlace& place) const {
  const at::Tensor z = Stream(0, "rounding probe").at(0).normal({place.y.size(0)}).to(place.y.options());
  return std::make_unique<InnerPlace>(in_, place.x, place.y + 4 * rounding_unit(place.y) * place.y * z);
}

// How r would change if y did not change at all: r(y + δ) − r(y) − (∂y r) δ for a δ at the edge of what y can tell apart. What
// both have in common shows in how large the terms of r are.
double InnerNewton::rounding_at(const InnerPlace& place) const {
  const std::unique_ptr<InnerPlace> there = beside(place);
  const at::Tensor difference = there->r - place.r - place.jvp_y(there->y - place.y);
  return std::max(kRoundingSafety * norm_of(difference), rounding_unit(place.y) * norm_of(place.jvp_y(place.y)));
}

bool InnerNewton::solve(const at::Tensor& x, const at::Tensor& y, double target) {
  place_ = std::make_unique<InnerPlace>(in_, x, y);
  renewed_ = false;
  const double start = norm_of(place_->r);
  if (!std::isfinite(start)) return false;
  sigma_ = rounding_at(*place_);
  if (inverse_ == nullptr || !dense_) renew();
  for (int64_t i = 0; i < options_.steps; ++i) {
    const double before = norm_of(place_->r);
    if (before <= std::max(sigma_, target * start)) return true;
    const at::Tensor step = inverse_->apply(place_->r, 1e-3);
    std::unique_ptr<InnerPlace> next;
    double after = 0;
    for (double t = 1.0; t > 0.05; t /= 2) {
      next = std::make_unique<InnerPlace>(in_, x, place_->y - t * step);
      after = norm_of(next->r);
      if (after <= (1 - 0.3 * t) * before) break;
      next.reset();
      if (!renewed_) break;  // a chord that fails wants a new matrix, not a shorter step
    }
    if (next == nullptr) {
      if (renewed_) break;
      renew();
      continue;
    }
    place_ = std::move(next);
    renewed_ = false;
    if (after > 0.1 * before || !dense_) renew();
  }
  sigma_ = rounding_at(*place_);
  return norm_of(place_->r) <= std::max(30 * sigma_, std::max(target, 1e-3) * start);
}

}  // namespace bilevel
