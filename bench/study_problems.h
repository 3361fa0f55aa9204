#pragma once
#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "bench/certificate_study.h"
#include "bilevel/core/stream.h"
#include "bilevel/hypergrad/certificate.h"
#include "bilevel/hypergrad/spot_check.h"
#include "bilevel/oracle/oracle.h"

// The problems of the study of docs/certificates.md, and the ways in which they are damaged.
namespace bilevel::study {

inline double length(const at::Tensor& v) { return v.norm().item<double>(); }
inline at::Tensor rows(const at::Tensor& data, const Batch& batch) {
  return batch.full() ? data : data.index_select(0, batch.samples);
}

/// What all problems of the study have. Data are kept in double, rounded to the dtype: the twin in double has the same.
class StudyProblem : public Problem {
 public:
  const Layout& outer_layout() const override { return outer_layout_; }
  const Layout& inner_layout() const override { return inner_layout_; }
  at::Tensor initial_outer() const override { return x0; }
  at::Tensor initial_inner(const at::Tensor&, int64_t) const override { return y0; }
  virtual std::unique_ptr<StudyProblem> twin() const = 0;  // in double
  bool indefinite = false;

 protected:
  void lay_out() {
    outer_layout_.add("x", {x0.size(0)});
    inner_layout_.add("y", {y0.size(0)});
  }
  Layout outer_layout_, inner_layout_;

 public:
  at::Tensor x0, y0;
};

template <class T>
class WithData : public StudyProblem {
 public:
  std::unique_ptr<StudyProblem> twin() const override {
    auto copy = std::make_unique<T>(static_cast<const T&>(*this));
    for (at::Tensor* t : copy->data()) *t = t->to(at::kDouble);
    return copy;
  }

 protected:
  void finish(at::ScalarType dtype) {
    for (at::Tensor* t : static_cast<T*>(this)->data()) *t = t->to(dtype).contiguous();
    lay_out();
  }
};

inline at::Tensor orthogonal(Draw& draw, int64_t n) { return std::get<0>(at::linalg_qr(draw.normal({n, n}))); }
inline at::Tensor spectrum(double condition, int64_t n) {
  return at::pow(10.0, at::linspace(-std::log10(condition), 0.0, n, at::TensorOptions(at::kDouble)));
}

/// g = ½‖Z y‖² + ½ μ‖y‖² − yᵀ(B x + c), f = ½‖y − d‖² + ½ ρ‖x‖²; strongly convex in any arithmetic. Indefinite: less 2μ‖y‖².
class Quadratic final : public WithData<Quadratic> {
 public:
  Quadratic(Draw& draw, double condition, bool saddle, at::ScalarType dtype) {
    indefinite = saddle;
    const int64_t n = 4 + draw.integers(30, {1}).item<int64_t>(), m = 2 + draw.integers(12, {1}).item<int64_t>();
    const at::Tensor eigenvalues = spectrum(condition, n), Q = orthogonal(draw, n);
    mu_ = 1.0 / condition;
    Z = (eigenvalues - mu_).clamp_min(0).sqrt().unsqueeze(1) * Q.t();
    const at::Tensor root = (Q * eigenvalues.sqrt()).mm(Q.t());
    B = root.mm(draw.normal({n, m}));
    c = root.mm(root).mv(draw.normal({n}));
    d = draw.normal({n});
    x0 = draw.normal({m});
    y0 = draw.normal({n});
    rho_ = length(B.t().mv(at::linalg_solve(root.mm(root), d))) / length(x0);
    finish(dtype);
  }
  std::vector<at::Tensor*> data() { return {&Z, &B, &c, &d, &x0, &y0}; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return 0.5 * Z.mv(y).square().sum() + 0.5 * (indefinite ? -3.0 : 1.0) * mu_ * y.square().sum() - y.dot(B.mv(x) + c);
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return 0.5 * (y - d).square().sum() + 0.5 * rho_ * x.square().sum();
  }
  double inner_strong_convexity(const at::Tensor&) const override { return indefinite ? 0.0 : mu_; }

 private:
  at::Tensor Z, B, c, d;
  double mu_ = 0, rho_ = 0;
};

inline at::Tensor design(Draw& draw, int64_t n, int64_t p, double condition) {
  const at::Tensor U = std::get<0>(at::linalg_qr(draw.normal({n, p})));
  return std::sqrt(static_cast<double>(n)) * (U * spectrum(condition, p).sqrt()).mm(orthogonal(draw, p).t());
}

/// g = ½‖X y − t‖²/n + ½ Σ e^{xⱼ} yⱼ², f = ½‖X' y − t'‖²/n + ½ ρ‖x‖². Indefinite: ridges −e^{xⱼ}.
class Ridge final : public WithData<Ridge> {
 public:
  Ridge(Draw& draw, double condition, bool saddle, at::ScalarType dtype) {
    indefinite = saddle;
    const int64_t p = 4 + draw.integers(20, {1}).item<int64_t>(), n = 3 * p;
    X = design(draw, n, p, condition);
    V = design(draw, n, p, std::sqrt(condition));
    const at::Tensor truth = draw.normal({p});
    t = X.mv(truth) + 0.3 * draw.normal({n});
    s = V.mv(truth) + 0.3 * draw.normal({n});
    x0 = -std::log(condition) + 0.5 * draw.normal({p}) + (saddle ? 2.0 : 0.0);
    y0 = at::zeros({p}, at::kDouble);
    finish(dtype);
  }
  std::vector<at::Tensor*> data() { return {&X, &V, &t, &s, &x0, &y0}; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return 0.5 * (rows(X, batch).mv(y) - rows(t, batch)).square().mean() +
           (indefinite ? -0.5 : 0.5) * (x.exp() * y.square()).sum();
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return 0.5 * (V.mv(y) - s).square().mean() + 1e-3 * x.square().mean();
  }
  int64_t inner_samples() const override { return X.size(0); }
  double inner_strong_convexity(const at::Tensor& x) const override { return indefinite ? 0.0 : x.exp().min().item<double>(); }

 private:
  at::Tensor X, V, t, s;
};

/// g = (1/n) Σ σ(xᵢ) ℓᵢ(y) + ½ λ‖y‖², f = mean ℓ' + 0.005‖x‖²; ℓ the logistic loss. Indefinite: λ < 0.
class Logistic final : public WithData<Logistic> {
 public:
  Logistic(Draw& draw, double condition, bool saddle, at::ScalarType dtype) {
    indefinite = saddle;
    const int64_t p = 3 + draw.integers(12, {1}).item<int64_t>(), n = 8 * p;
    X = design(draw, n, p, condition);
    V = design(draw, n, p, std::sqrt(condition));
    const at::Tensor truth = 2 * draw.normal({p});
    t = (X.mv(truth) + draw.normal({n}) > 0).to(at::kDouble);
    s = (V.mv(truth) + draw.normal({n}) > 0).to(at::kDouble);
    lambda_ = (saddle ? -0.3 : 0.1) / condition;
    x0 = draw.normal({n});
    y0 = at::zeros({p}, at::kDouble);
    finish(dtype);
  }
  std::vector<at::Tensor*> data() { return {&X, &V, &t, &s, &x0, &y0}; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    const at::Tensor z = rows(X, batch).mv(y);
    return (rows(x, batch).sigmoid() * (at::softplus(z) - rows(t, batch) * z)).mean() + 0.5 * lambda_ * y.square().sum();
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    const at::Tensor z = V.mv(y);
    return (at::softplus(z) - s * z).mean() + 1e-3 * x.square().mean();
  }
  int64_t inner_samples() const override { return X.size(0); }
  double inner_strong_convexity(const at::Tensor&) const override { return std::max(0.0, lambda_); }

 private:
  at::Tensor X, V, t, s;
  double lambda_ = 0;
};

/// A tanh network with weights σ(xᵢ) and two log ridges in x; nothing is known of its curvature.
class Mlp final : public WithData<Mlp> {
 public:
  Mlp(Draw& draw, double condition, bool saddle, at::ScalarType dtype) {
    indefinite = saddle;
    features_ = 2 + draw.integers(2, {1}).item<int64_t>(), hidden_ = 3 + draw.integers(3, {1}).item<int64_t>();
    const int64_t n = 24;
    X = draw.normal({n, features_}), V = draw.normal({n, features_});
    const auto target = [&](const at::Tensor& inputs) {
      return (1.5 * inputs.select(1, 0)).sin() + 0.5 * inputs.select(1, 1) + 0.2 * draw.normal({n});
    };
    t = target(X), s = target(V);
    const double ridge = -0.5 * std::log(condition) - (saddle ? 6.0 : 0.0);
    x0 = at::cat({0.5 * draw.normal({n}), ridge + 0.3 * draw.normal({2})});
    y0 = 0.7 * draw.normal({features_ * hidden_ + 2 * hidden_ + 1});
    finish(dtype);
  }
  std::vector<at::Tensor*> data() { return {&X, &V, &t, &s, &x0, &y0}; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    const int64_t n = X.size(0);
    const at::Tensor ridges = x.narrow(0, n, 2).exp();
    const int64_t first = features_ * hidden_ + hidden_;
    return 0.5 * (rows(x.narrow(0, 0, n), batch).sigmoid() * (forward(y, rows(X, batch)) - rows(t, batch)).square()).mean() +
           0.5 * (ridges[0] * y.narrow(0, 0, first).square().sum() + ridges[1] * y.narrow(0, first, hidden_ + 1).square().sum());
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return 0.5 * (forward(y, V) - s).square().mean() + 1e-3 * x.square().mean();
  }
  int64_t inner_samples() const override { return X.size(0); }

 private:
  at::Tensor forward(const at::Tensor& y, const at::Tensor& inputs) const {
    const auto parts = y.split_with_sizes({features_ * hidden_, hidden_, hidden_, 1});
    return ((inputs.mm(parts[0].view({features_, hidden_})) + parts[1]).tanh()).mv(parts[2]) + parts[3];
  }
  at::Tensor X, V, t, s;
  int64_t features_ = 0, hidden_ = 0;
};

/// Damages the products of another linearization.
class DamagedLinearization final : public Linearization {
 public:
  DamagedLinearization(std::unique_ptr<Linearization> base, bool flip, bool nan)
      : base_(std::move(base)), flip_(flip), nan_(nan) {}
  at::Tensor value() override { return base_->value(); }
  at::Tensor residual() override { return base_->residual(); }
  at::Tensor grad_x() override { return base_->grad_x(); }
  at::Tensor jvp_y(const at::Tensor& v) override { return spoilt(base_->jvp_y(v)); }
  Vjp vjp(const at::Tensor& w) override {
    Vjp both = base_->vjp(w);
    return {spoilt(both.y), flip_ ? both.x.neg() : both.x};
  }
  at::Tensor jvp_x(const at::Tensor& u) override { return flip_ ? base_->jvp_x(u).neg() : base_->jvp_x(u); }
  at::Tensor gauss_newton(const at::Tensor& v) override { return base_->gauss_newton(v); }

 private:
  at::Tensor spoilt(at::Tensor product) const {
    if (nan_) product.select(-1, 0).fill_(std::numeric_limits<double>::quiet_NaN());
    return product;
  }
  std::unique_ptr<Linearization> base_;
  bool flip_, nan_;
};

/// An oracle as damaged code would make it.
class DamagedOracle final : public Oracle {
 public:
  /// Draws what a stale batch is.
  DamagedOracle(const Oracle& base, const StudyProblem& problem, const std::string& damage, Draw& draw)
      : Oracle(base.problem()), flip(damage == "wrong sign in the products"), nan(damage == "NaN"), base_(base) {
    if (damage != "stale batch") return;
    if (problem.inner_samples() > 0) stale_samples = draw.permutation(problem.inner_samples()).narrow(0, 0, 4);
    stale_x = problem.x0 + draw.normal({problem.x0.size(0)}).to(problem.x0.options());
  }
  std::unique_ptr<Linearization> linearize_inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    Batch used = batch;
    if (stale_samples.defined()) used.samples = stale_samples;
    auto honest = base_.linearize_inner(stale_x.defined() ? stale_x : x, y, used);
    return std::make_unique<DamagedLinearization>(std::move(honest), flip, nan);
  }
  Gradients inner(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override { return base_.inner(x, y, b); }
  Gradients outer(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override { return base_.outer(x, y, b); }
  at::Tensor inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return base_.inner_grad_x(x, y, b);
  }
  at::Tensor inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return base_.inner_value(x, y, b);
  }
  at::Tensor outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return base_.outer_value(x, y, b);
  }
  bool flip = false, nan = false;
  at::Tensor stale_samples, stale_x;

 private:
  const Oracle& base_;
};

inline at::Tensor matrix(Linearization& linearization, int64_t d) {
  return linearization.jvp_y(at::eye(d, at::TensorOptions(at::kDouble)));
}

inline std::unique_ptr<StudyProblem> make_problem(int64_t kind, Draw& draw, double condition, bool saddle, at::ScalarType dtype) {
  switch (kind) {
    case 0: return std::make_unique<Quadratic>(draw, condition, saddle, dtype);
    case 1: return std::make_unique<Ridge>(draw, condition, saddle, dtype);
    case 2: return std::make_unique<Logistic>(draw, condition, saddle, dtype);
    default: return std::make_unique<Mlp>(draw, condition, saddle, dtype);
  }
}

/// The draws that all cases begin with.
struct Drawn {
  int64_t kind = 0, which = 0, damage = 0;
  double condition = 0;
  at::ScalarType dtype = at::kDouble;
  bool products = false;  // of the certificate's two routes
};
Drawn draw_case(Draw& draw, CertificateCase& found);

/// Certifies h, checks it and writes what came of it into `found`.
void examine(CertificateCase& found, Hypergradient& h, const EstimatorInput& in, bool products);

CertificateCase implicit_case(int64_t seed);
CertificateCase unrolled_case(int64_t seed);
CertificateCase constrained_case(int64_t seed);

}  // namespace bilevel::study
