#include "tasks/selftest_problems.h"

#include <ATen/ATen.h>

#include "bilevel/problem/digits.h"
#include "tasks/random_state.h"

namespace bilevel {
namespace {

at::Tensor mean_logistic_loss(const at::Tensor& z, const at::Tensor& t) { return (at::softplus(z) - t * z).mean(); }

}  // namespace

NotebookProblem::NotebookProblem() {
  RandomState random(1);
  oracle = random.normals({20});
  X = random.normals({1000, 20});
  targets = (X.mv(oracle) + 0.1 * random.normals({1000}) > 0).to(at::kDouble);
  permutation = random.permutation(1000);
  // The notebook's data went through float32.
  const at::Tensor rounded = X.to(at::kFloat).to(at::kDouble).index_select(0, permutation);
  const at::Tensor t = targets.index_select(0, permutation);
  outer_X_ = rounded.narrow(0, 0, 500);
  outer_t_ = t.narrow(0, 0, 500);
  inner_X_ = rounded.narrow(0, 500, 500);
  inner_t_ = t.narrow(0, 500, 500);
  outer_layout_.add("l2", {20});
  inner_layout_.add("weight", {20});
  x0_ = at::ones({20}, at::kDouble);
  y0_ = at::zeros({20}, at::kDouble);
}

at::Tensor NotebookProblem::inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const {
  return mean_logistic_loss(inner_X_.mv(y), inner_t_) + 0.5 * (x * y.square()).sum();
}

at::Tensor NotebookProblem::outer_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const {
  return mean_logistic_loss(outer_X_.mv(y), outer_t_);
}

std::vector<Constraint> NotebookProblem::outer_constraints() const {
  return {Constraint::box(1e-8, std::numeric_limits<double>::infinity())};
}

CleaningProblem::CleaningProblem() {
  const at::Tensor pixels = digits().pixels.view({-1, 64}).to(at::kDouble) / 16.0;
  const at::Tensor truth = digits().labels;
  const int64_t test = pixels.size(0) - 1000;
  train_ = pixels.narrow(0, 0, 500).t().contiguous();
  validation_ = pixels.narrow(0, 500, 500).t().contiguous();
  test_ = pixels.narrow(0, 1000, test).t().contiguous();
  validation_labels_ = truth.narrow(0, 500, 500);
  test_labels_ = truth.narrow(0, 1000, test);
  const at::Tensor i = at::arange(500, at::kLong);
  wrong = i.remainder(2).eq(0);
  const at::Tensor moved = (truth.narrow(0, 0, 500) + 1 + i.div(2, "floor").remainder(9)).remainder(10);
  labels = at::where(wrong, moved, truth.narrow(0, 0, 500));
  outer_layout_.add("weights", {500});
  inner_layout_.add("weight", {10, 64}).add("bias", {10});
  x0_ = at::zeros({500}, at::kDouble);
  y0_ = at::zeros({650}, at::kDouble);
}

at::Tensor CleaningProblem::logits(const at::Tensor& y, const at::Tensor& Xt) const {
  const auto parts = inner_layout_.split(y);
  return parts[0].mm(Xt) + parts[1].unsqueeze(1);
}

at::Tensor CleaningProblem::losses(const at::Tensor& y, const at::Tensor& Xt, const at::Tensor& t) const {
  const at::Tensor z = logits(y, Xt);
  return z.logsumexp(0) - z.gather(0, t.unsqueeze(0)).squeeze(0);
}

at::Tensor CleaningProblem::inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const {
  return (x.sigmoid() * losses(y, train_, labels)).mean() + 0.005 * y.square().sum();
}

at::Tensor CleaningProblem::outer_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const {
  return losses(y, validation_, validation_labels_).mean();
}

double CleaningProblem::test_accuracy(const at::Tensor& y) const {
  return logits(y, test_).argmax(0).eq(test_labels_).to(at::kDouble).mean().item<double>();
}

// ---- Other coordinates ----

RotatedProblem::RotatedProblem(const Problem& base, at::Tensor P) : base_(base), P_(std::move(P)) {
  outer_layout_ = base.outer_layout();
  inner_layout_.add("z", {P_.size(0)});
  x0_ = base.initial_outer();
  y0_ = P_.mv(base.initial_inner(x0_, 0));
}

at::Tensor RotatedProblem::inner_loss(const at::Tensor& x, const at::Tensor& z, const Batch& batch) const {
  return base_.inner_loss(x, P_.t().mv(z), batch);
}

at::Tensor RotatedProblem::outer_loss(const at::Tensor& x, const at::Tensor& z, const Batch& batch) const {
  return base_.outer_loss(x, P_.t().mv(z), batch);
}

}  // namespace bilevel
