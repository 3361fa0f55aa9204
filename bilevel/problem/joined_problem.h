#pragma once
#include <ATen/core/Tensor.h>

#include <functional>

#include "bilevel/problem/problem.h"

namespace bilevel {

/// The k inner problems of `base` (the tasks of few-shot learning) as one, whose y is theirs one after the other [k · dy]:
///
///     g(x, Y) = Σ_s g_s(x, Y_s),     f(x, Y) = (1/k) Σ_s f_s(x, Y_s)
///
/// ∂Y g is made of the tasks' own gradients, so a rule that treats each element by itself (sgd, adam, …) takes each task where it
/// would go alone, and every estimator gives the mean over the tasks of what it gives for one. What is saved is k − 1 of every k
/// calls of a tensor operation: the losses of all tasks are computed at once. What couples the elements does not separate:
/// clipping by norm, lr = "auto" and tolerances are then those of all tasks together.
class JoinedProblem final : public Problem {
 public:
  /// (x, Y [k, dy]) → the losses [k] of the tasks, built by differentiable operations.
  using Losses = std::function<at::Tensor(const at::Tensor& x, const at::Tensor& Y)>;

  /// Keeps a reference to `base`. Its own losses are not asked for.
  JoinedProblem(const Problem& base, Losses inner, Losses outer);

  const Layout& outer_layout() const override { return base_.outer_layout(); }
  const Layout& inner_layout() const override { return layout_; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor initial_outer() const override { return base_.initial_outer(); }
  at::Tensor initial_inner(const at::Tensor& x, int64_t slice) const override;
  bool initial_inner_depends_on_outer() const override { return base_.initial_inner_depends_on_outer(); }
  std::vector<Constraint> outer_constraints() const override { return base_.outer_constraints(); }

 private:
  at::Tensor losses(const Losses& of, const char* name, const at::Tensor& x, const at::Tensor& y) const;
  const Problem& base_;
  Losses inner_, outer_;
  Layout layout_;
};

}  // namespace bilevel
