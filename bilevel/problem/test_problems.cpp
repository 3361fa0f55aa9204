#include "bilevel/problem/test_problems.h"

#include <ATen/ATen.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/problem/likelihood.h"

namespace bilevel {
namespace {

at::Tensor rows(const at::Tensor& data, const Batch& batch) { return batch.full() ? data : data.index_select(0, batch.samples); }

// −log p(t | z) = log(1 + eᶻ) − t z, in a form that is smooth and does not overflow.
at::Tensor logistic_losses(const at::Tensor& z, const at::Tensor& t) { return at::softplus(z) - t * z; }

// Correlated columns, so that no estimator is right by treating H as diagonal.
at::Tensor correlated_design(Draw& draw, int64_t samples, int64_t features) {
  const at::Tensor mixing = at::eye(features, at::kDouble) + 0.3 * draw.normal({features, features});
  return draw.normal({samples, features}).mm(mixing);
}

}  // namespace

at::Tensor TestProblem::initial_inner(const at::Tensor& x, int64_t slice) const {
  (void)slice;
  return y0_.to(x.options());
}

// ---- Quadratic ----

QuadraticProblem::QuadraticProblem(const QuadraticOptions& options) {
  require(options.condition >= 1.0 && options.inner >= 1 && options.outer >= 1,
          "QuadraticProblem: condition, inner and outer must be at least 1.");
  Draw draw = Stream(options.seed, "quadratic problem").at(0);
  const int64_t n = options.inner;
  const at::Tensor orthogonal = std::get<0>(at::linalg_qr(draw.normal({n, n})));
  const at::Tensor eigenvalues = at::pow(10.0, at::linspace(-std::log10(options.condition), 0.0, n, at::kDouble));
  A_ = (orthogonal * eigenvalues).mm(orthogonal.t());
  A_ = 0.5 * (A_ + A_.t());
  B_ = draw.normal({n, options.outer});
  c_ = draw.normal({n});
  d_ = draw.normal({n});
  x0_ = draw.normal({options.outer});
  y0_ = draw.normal({n});
  rho_ = options.direct * (hypergradient(x0_).norm() / x0_.norm()).item<double>();  // ρ is still 0 in hypergradient here
  for (at::Tensor* t : {&A_, &B_, &c_, &d_, &x0_, &y0_}) *t = t->to(options.dtype);
  outer_layout_.add("x", {options.outer});
  inner_layout_.add("y", {n});
}

at::Tensor QuadraticProblem::inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const {
  return 0.5 * y.dot(A_.mv(y)) - y.dot(B_.mv(x) + c_);
}

at::Tensor QuadraticProblem::outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const {
  return 0.5 * (y - d_).square().sum() + 0.5 * rho_ * x.square().sum();
}

at::Tensor QuadraticProblem::solution(const at::Tensor& x) const { return at::linalg_solve(A_, B_.mv(x) + c_); }

at::Tensor QuadraticProblem::hypergradient(const at::Tensor& x) const {
  return rho_ * x + B_.t().mv(at::linalg_solve(A_, solution(x) - d_));
}

// ---- Ridge ----

RidgeProblem::RidgeProblem(const RidgeOptions& options) {
  Draw draw = Stream(options.seed, "ridge problem").at(0);
  const at::Tensor design = correlated_design(draw, options.inner_samples + options.outer_samples, options.features);
  const at::Tensor truth = draw.normal({options.features});
  const at::Tensor targets = design.mv(truth) + 0.5 * draw.normal({design.size(0)});
  X_ = design.narrow(0, 0, options.inner_samples).to(options.dtype).contiguous();
  t_ = targets.narrow(0, 0, options.inner_samples).to(options.dtype).contiguous();
  outer_X_ = design.narrow(0, options.inner_samples, options.outer_samples).to(options.dtype).contiguous();
  outer_t_ = targets.narrow(0, options.inner_samples, options.outer_samples).to(options.dtype).contiguous();
  set_layouts();
  x0_ = (0.5 * draw.normal({options.features}) - 1.0).to(options.dtype);
}

RidgeProblem::RidgeProblem(at::Tensor X, at::Tensor t, at::Tensor outer_X, at::Tensor outer_t)
    : X_(std::move(X)), t_(std::move(t)), outer_X_(std::move(outer_X)), outer_t_(std::move(outer_t)) {
  require(X_.dim() == 2 && outer_X_.dim() == 2 && X_.size(1) == outer_X_.size(1) && t_.size(0) == X_.size(0) &&
              outer_t_.size(0) == outer_X_.size(0),
          "RidgeProblem: expected X [n, p], t [n], X' [m, p] and t' [m].");
  set_layouts();
  x0_ = at::zeros({X_.size(1)}, X_.options());
}

void RidgeProblem::set_layouts() {
  outer_layout_.add("log_ridge", {X_.size(1)});
  inner_layout_.add("weight", {X_.size(1)});
  y0_ = at::zeros({X_.size(1)}, X_.options());
}

at::Tensor RidgeProblem::inner_outputs(const at::Tensor& y, const Batch& batch) const { return rows(X_, batch).mv(y); }

at::Tensor RidgeProblem::inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                               const Batch& batch) const {
  return 0.5 * (outputs - rows(t_, batch)).square().mean() + 0.5 * (x.exp() * y.square()).sum();
}

Likelihood RidgeProblem::inner_likelihood(const at::Tensor& x, const Batch& batch) const {
  const at::Tensor t = rows(t_, batch);
  return {Loss::Kind::kSquared, 1, t.unsqueeze(0), at::ones_like(t) / static_cast<double>(t.size(0)), x.exp()};
}

at::Tensor RidgeProblem::inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return inner_loss_of_outputs(x, y, inner_outputs(y, batch), batch);
}

at::Tensor RidgeProblem::outer_outputs(const at::Tensor& y, const Batch& batch) const { return rows(outer_X_, batch).mv(y); }

at::Tensor RidgeProblem::outer_loss_of_outputs(const at::Tensor&, const at::Tensor&, const at::Tensor& outputs,
                                               const Batch& batch) const {
  return 0.5 * (outputs - rows(outer_t_, batch)).square().mean();
}

at::Tensor RidgeProblem::outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return outer_loss_of_outputs(x, y, outer_outputs(y, batch), batch);
}

at::Tensor RidgeProblem::inner_features(const at::Tensor&, const Batch& batch) const { return rows(X_, batch).t(); }

at::Tensor RidgeProblem::outer_features(const at::Tensor&, const Batch& batch) const { return rows(outer_X_, batch).t(); }

at::Tensor RidgeProblem::hessian(const at::Tensor& x) const {
  return X_.t().mm(X_) / static_cast<double>(X_.size(0)) + at::diag(x.exp());
}

at::Tensor RidgeProblem::solution(const at::Tensor& x) const {
  return at::linalg_solve(hessian(x), X_.t().mv(t_) / static_cast<double>(X_.size(0)));
}

at::Tensor RidgeProblem::hypergradient(const at::Tensor& x) const {
  const at::Tensor y = solution(x);
  const at::Tensor b = outer_X_.t().mv(outer_X_.mv(y) - outer_t_) / static_cast<double>(outer_X_.size(0));
  return -x.exp() * y * at::linalg_solve(hessian(x), b);
}

// ---- Logistic regression with sample weights ----

LogisticWeightsProblem::LogisticWeightsProblem(const LogisticWeightsOptions& options) : ridge_(options.ridge) {
  Draw draw = Stream(options.seed, "logistic weights problem").at(0);
  const at::Tensor design = correlated_design(draw, options.inner_samples + options.outer_samples, options.features);
  const at::Tensor truth = draw.normal({options.features});
  const at::Tensor targets = (design.mv(truth) + draw.normal({design.size(0)}) > 0).to(at::kDouble);
  X_ = design.narrow(0, 0, options.inner_samples).to(options.dtype).contiguous();
  t_ = targets.narrow(0, 0, options.inner_samples).to(options.dtype).contiguous();
  outer_X_ = design.narrow(0, options.inner_samples, options.outer_samples).to(options.dtype).contiguous();
  outer_t_ = targets.narrow(0, options.inner_samples, options.outer_samples).to(options.dtype).contiguous();
  outer_layout_.add("weights", {options.inner_samples});
  inner_layout_.add("weight", {options.features});
  x0_ = draw.normal({options.inner_samples}).to(options.dtype);
  y0_ = at::zeros({options.features}, X_.options());
}

at::Tensor LogisticWeightsProblem::inner_outputs(const at::Tensor& y, const Batch& batch) const { return rows(X_, batch).mv(y); }

at::Tensor LogisticWeightsProblem::inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                                         const Batch& batch) const {
  return (rows(x, batch).sigmoid() * logistic_losses(outputs, rows(t_, batch))).mean() + 0.5 * ridge_ * y.square().sum();
}

Likelihood LogisticWeightsProblem::inner_likelihood(const at::Tensor& x, const Batch& batch) const {
  const at::Tensor t = rows(t_, batch);
  return {Loss::Kind::kLogistic, 1, (2 * t - 1).unsqueeze(0), rows(x, batch).sigmoid() / static_cast<double>(t.size(0)),
          at::full({X_.size(1)}, ridge_, x.options())};
}

at::Tensor LogisticWeightsProblem::inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return inner_loss_of_outputs(x, y, inner_outputs(y, batch), batch);
}

at::Tensor LogisticWeightsProblem::outer_outputs(const at::Tensor& y, const Batch& batch) const {
  return rows(outer_X_, batch).mv(y);
}

at::Tensor LogisticWeightsProblem::outer_loss_of_outputs(const at::Tensor& x, const at::Tensor&, const at::Tensor& outputs,
                                                         const Batch& batch) const {
  return logistic_losses(outputs, rows(outer_t_, batch)).mean() + 0.005 * x.square().sum();
}

at::Tensor LogisticWeightsProblem::outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return outer_loss_of_outputs(x, y, outer_outputs(y, batch), batch);
}

at::Tensor LogisticWeightsProblem::inner_features(const at::Tensor&, const Batch& batch) const { return rows(X_, batch).t(); }

at::Tensor LogisticWeightsProblem::outer_features(const at::Tensor&, const Batch& batch) const {
  return rows(outer_X_, batch).t();
}

at::Tensor LogisticWeightsProblem::hessian(const at::Tensor& x, const at::Tensor& y) const {
  const at::Tensor p = X_.mv(y).sigmoid();
  const at::Tensor curvature = x.sigmoid() * p * (1 - p) / static_cast<double>(X_.size(0));
  return (X_.t() * curvature).mm(X_) + ridge_ * at::eye(X_.size(1), X_.options());
}

at::Tensor LogisticWeightsProblem::solution(const at::Tensor& x) const {
  at::Tensor y = y0_;
  for (int i = 0; i < 30; ++i) {
    const at::Tensor gradient = X_.t().mv(x.sigmoid() * (X_.mv(y).sigmoid() - t_)) / static_cast<double>(X_.size(0)) + ridge_ * y;
    y = y - at::linalg_solve(hessian(x, y), gradient);
  }
  return y;
}

at::Tensor LogisticWeightsProblem::hypergradient(const at::Tensor& x, const at::Tensor& y) const {
  const at::Tensor b = outer_X_.t().mv(outer_X_.mv(y).sigmoid() - outer_t_) / static_cast<double>(outer_X_.size(0));
  const at::Tensor q = at::linalg_solve(hessian(x, y), b);
  const at::Tensor s = x.sigmoid();
  // ∇ℓᵢ = (pᵢ − tᵢ) Xᵢ
  return 0.01 * x - s * (1 - s) * (X_.mv(y).sigmoid() - t_) * X_.mv(q) / static_cast<double>(X_.size(0));
}

// ---- Network ----

MlpProblem::MlpProblem(const MlpOptions& options) {
  Draw draw = Stream(options.seed, "mlp problem").at(0);
  const at::Tensor inputs = draw.normal({options.inner_samples + options.outer_samples, options.features});
  const at::Tensor targets =
      (1.5 * inputs.select(1, 0)).sin() + 0.5 * inputs.select(1, options.features - 1) + 0.3 * draw.normal({inputs.size(0)});
  X_ = inputs.narrow(0, 0, options.inner_samples).to(options.dtype).contiguous();
  t_ = targets.narrow(0, 0, options.inner_samples).to(options.dtype).contiguous();
  outer_X_ = inputs.narrow(0, options.inner_samples, options.outer_samples).to(options.dtype).contiguous();
  outer_t_ = targets.narrow(0, options.inner_samples, options.outer_samples).to(options.dtype).contiguous();
  outer_layout_.add("weights", {options.inner_samples}).add("ridge", {2});
  inner_layout_.add("hidden.weight", {options.hidden, options.features})
      .add("hidden.bias", {options.hidden})
      .add("output.weight", {1, options.hidden})
      .add("output.bias", {1});
  x0_ = at::cat({0.5 * draw.normal({options.inner_samples}), at::full({2}, -4.0, at::kDouble)}).to(options.dtype);
  y0_ = (0.7 * draw.normal({inner_layout_.size()})).to(options.dtype);
}

at::Tensor MlpProblem::hidden(const at::Tensor& y, const at::Tensor& X) const {
  const auto parts = inner_layout_.split(y);
  return (X.mm(parts[0].t()) + parts[1]).tanh().t();
}

at::Tensor MlpProblem::forward(const at::Tensor& y, const at::Tensor& X) const {
  const auto parts = inner_layout_.split(y);
  const at::Tensor hidden = (X.mm(parts[0].t()) + parts[1]).tanh();
  return (hidden.mm(parts[2].t()) + parts[3]).squeeze(1);
}

at::Tensor MlpProblem::inner_outputs(const at::Tensor& y, const Batch& batch) const { return forward(y, rows(X_, batch)); }

at::Tensor MlpProblem::inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                             const Batch& batch) const {
  const auto outer = outer_layout_.split(x);
  const auto inner = inner_layout_.split(y);
  const at::Tensor ridge = outer[1].exp();
  return 0.5 * (rows(outer[0], batch).sigmoid() * (outputs - rows(t_, batch)).square()).mean() +
         0.5 * (ridge[0] * (inner[0].square().sum() + inner[1].square().sum()) +
                ridge[1] * (inner[2].square().sum() + inner[3].square().sum()));
}

Likelihood MlpProblem::inner_likelihood(const at::Tensor& x, const Batch& batch) const {
  const auto outer = outer_layout_.split(x);
  const at::Tensor t = rows(t_, batch), ridge = outer[1].exp();
  std::vector<at::Tensor> ridges;
  for (size_t p = 0; p < inner_layout_.parts().size(); ++p) {
    ridges.push_back(ridge[p < 2 ? 0 : 1].expand({inner_layout_.parts()[p].size}));
  }
  return {Loss::Kind::kSquared, 1, t.unsqueeze(0), rows(outer[0], batch).sigmoid() / static_cast<double>(t.size(0)),
          at::cat(ridges)};
}

at::Tensor MlpProblem::inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return inner_loss_of_outputs(x, y, inner_outputs(y, batch), batch);
}

at::Tensor MlpProblem::outer_outputs(const at::Tensor& y, const Batch& batch) const { return forward(y, rows(outer_X_, batch)); }

at::Tensor MlpProblem::outer_loss_of_outputs(const at::Tensor& x, const at::Tensor&, const at::Tensor& outputs,
                                             const Batch& batch) const {
  return 0.5 * (outputs - rows(outer_t_, batch)).square().mean() + 0.01 * x.square().sum();
}

at::Tensor MlpProblem::outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return outer_loss_of_outputs(x, y, outer_outputs(y, batch), batch);
}

at::Tensor MlpProblem::inner_features(const at::Tensor& y, const Batch& batch) const { return hidden(y, rows(X_, batch)); }

at::Tensor MlpProblem::outer_features(const at::Tensor& y, const Batch& batch) const { return hidden(y, rows(outer_X_, batch)); }

// ---- Few-shot learning ----

SinusoidMamlProblem::SinusoidMamlProblem(const MamlOptions& options) : proximity_(options.proximity) {
  inner_layout_.add("l1.weight", {8, 1}).add("l1.bias", {8}).add("l2.weight", {8, 8}).add("l2.bias", {8});
  inner_layout_.add("l3.weight", {1, 8}).add("l3.bias", {1});
  outer_layout_ = inner_layout_;
  const at::Tensor k = at::arange(inner_layout_.size(), at::kDouble);
  x0_ = (0.5 * (0.7 * k + 0.3).sin()).to(options.dtype);
  const at::Tensor points = (-2.0 + 0.4 * at::arange(10, at::kDouble)).unsqueeze(1);
  support_ = points.to(options.dtype);
  query_ = (points + 0.2).to(options.dtype);
}

at::Tensor SinusoidMamlProblem::error(const at::Tensor& y, const at::Tensor& inputs, int64_t slice) const {
  const double amplitude = 1.0 + 0.5 * static_cast<double>(slice);
  const double phase = 0.3 * static_cast<double>(slice);
  const auto p = inner_layout_.split(y);
  const at::Tensor h1 = (inputs.mm(p[0].t()) + p[1]).tanh();
  const at::Tensor h2 = (h1.mm(p[2].t()) + p[3]).tanh();
  return (h2.mm(p[4].t()) + p[5] - amplitude * (inputs + phase).sin()).square().mean();
}

at::Tensor SinusoidMamlProblem::inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const at::Tensor loss = error(y, support_, batch.slice);
  return proximity_ == 0.0 ? loss : loss + 0.5 * proximity_ * (y - x).square().sum();
}

at::Tensor SinusoidMamlProblem::outer_loss(const at::Tensor&, const at::Tensor& y, const Batch& batch) const {
  return error(y, query_, batch.slice);
}

// ---- Learned hyperparameters of the rule ----

LearnedRuleProblem::LearnedRuleProblem(const Problem& base, double lr, double momentum) : base_(base) {
  for (const Part& part : base.outer_layout().parts()) outer_layout_.add(part.name, part.shape);
  outer_layout_.add("lr", {});
  std::vector<double> values{lr};
  if (momentum >= 0.0) {
    outer_layout_.add("momentum", {});
    values.push_back(momentum);
  }
  inner_layout_ = base.inner_layout();
  const at::Tensor x0 = base.initial_outer();
  x0_ = at::cat({x0, at::tensor(values, at::TensorOptions(at::kDouble)).to(x0.options())});
  y0_ = base.initial_inner(x0, 0);
}

at::Tensor LearnedRuleProblem::base_x(const at::Tensor& x) const { return x.narrow(0, 0, base_.outer_layout().size()); }

at::Tensor LearnedRuleProblem::inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return base_.inner_loss(base_x(x), y, batch);
}

at::Tensor LearnedRuleProblem::outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return base_.outer_loss(base_x(x), y, batch);
}

Problem::RuleHyperparameters LearnedRuleProblem::rule_hyperparameters(const at::Tensor& x, int64_t t) const {
  RuleHyperparameters h;
  h.emplace_back("lr", x.select(0, outer_layout_.part("lr").offset) / (1.0 + 0.1 * static_cast<double>(t)));
  if (outer_layout_.has("momentum")) h.emplace_back("momentum", x.select(0, outer_layout_.part("momentum").offset));
  return h;
}

}  // namespace bilevel
