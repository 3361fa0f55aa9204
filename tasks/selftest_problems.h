#pragma once
#include <ATen/core/Tensor.h>

#include "bilevel/problem/test_problems.h"

/// The problems whose numbers other programs published, and what else the selftest is made of.
namespace bilevel {

/// hypertorch's examples/logistic_regression.ipynb: one ridge x_j for each weight, not in the logarithm.
/// g = mean logistic loss + ½ Σ x_j y_j² on 500 rows, f = mean logistic loss on 500 others; 20 weights, x₀ = 1, y₀ = 0.
class NotebookProblem final : public TestProblem {
 public:
  NotebookProblem();
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  std::vector<Constraint> outer_constraints() const override;

  // What the notebook's data are recognised by.
  at::Tensor oracle, X, permutation, targets;

 private:
  at::Tensor inner_X_, inner_t_, outer_X_, outer_t_;
};

/// Data hyper-cleaning on the digits: rows 0–499 train, 500–999 validate, the rest test, every even training label is moved.
/// g = mean over i of σ(x_i)·CE_i + ½·0.01‖y‖², f = mean CE; softmax regression, y holds W [10, 64] and b [10].
class CleaningProblem final : public TestProblem {
 public:
  CleaningProblem();
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  double test_accuracy(const at::Tensor& y) const;

  at::Tensor labels, wrong;  // of the training rows, as corrupted; whether they are

 private:
  at::Tensor losses(const at::Tensor& y, const at::Tensor& Xt, const at::Tensor& t) const;
  at::Tensor logits(const at::Tensor& y, const at::Tensor& Xt) const;  // [10, n] from [64, n]
  at::Tensor train_, validation_, test_, validation_labels_, test_labels_;
};

/// g and f of y = Pᵀ z, with P orthogonal: the same problem in other coordinates. `base` must outlive it.
class RotatedProblem final : public TestProblem {
 public:
  RotatedProblem(const Problem& base, at::Tensor P);
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& z, const Batch& batch) const override;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& z, const Batch& batch) const override;

 private:
  const Problem& base_;
  at::Tensor P_;
};

}  // namespace bilevel
