#pragma once
#include "bilevel/problem/problem.h"
#include "tasks/registry.h"

namespace bilevel {

/// MAML on sinusoids as one batched inner problem: y = (y_1, …, y_k), a network 1-40-40-1 (ReLU) for each of the k tasks, begun
/// at y₀(x) = (x, …, x). The inner loss is the sum over the tasks of the mean square on their first 10 points, so that each task
/// takes its own gradient steps; the outer loss the mean over the tasks of that on the other 10.
class Sinusoids final : public Problem {
 public:
  /// points, values [k, 20]; weights [1761], the parts of x one after the other: W1 [1, 40], b1, W2 [40, 40], b2, W3 [40, 1], b3.
  Sinusoids(const at::Tensor& points, const at::Tensor& values, at::Tensor weights);

  const Layout& outer_layout() const override { return outer_layout_; }
  const Layout& inner_layout() const override { return inner_layout_; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor initial_outer() const override { return weights_; }
  at::Tensor initial_inner(const at::Tensor& x, int64_t slice) const override;
  bool initial_inner_depends_on_outer() const override { return true; }

 private:
  at::Tensor squares(const at::Tensor& y, const at::Tensor& points, const at::Tensor& values) const;  // summed over the tasks

  int64_t tasks_;
  at::Tensor weights_, inner_points_, inner_values_, outer_points_, outer_values_;
  Layout outer_layout_, inner_layout_;
};

/// [problem] task = "sinusoids", folder = "…" with x.npy, y.npy and w.npy; every other task is the library's.
Task make_sinusoids_or_task(const Config& config, c10::Device device);

}  // namespace bilevel
