#pragma once
#include <memory>

#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/oracle.h"

namespace bilevel {

namespace native {
class Model;
}

/// Derivatives of generalised linear models by their own formulas, for problems that offer a linear form
/// (problem/linear_form.h); a loss that has none is left to autodiff.
///
/// Every product is one pass over the features in blocks that stay in the core's cache, by the widest vectors of the processor:
/// several times faster than autodiff, and equal to it to rounding. What depends on x (weights, ridge) is differentiated by
/// its maps where the form gives such, else by autograd, in vectors of n and of dy. A batch's samples are read where they are.
/// float is summed up in float within about a thousand samples, and in double beyond. The same number of threads gives the same
/// bits. The problem must outlive the oracle.
class NativeOracle final : public Oracle {
 public:
  /// Throws Error where the problem offers no form, or one that does not fit its layouts.
  explicit NativeOracle(const Problem& problem);
  ~NativeOracle() override;

  std::unique_ptr<Linearization> linearize_inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  Gradients inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  Gradients outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  std::unique_ptr<OutputSpace> output_space(const at::Tensor& x, const at::Tensor& y,
                                            const OutputSamples& samples) const override;
  /// Outer products of output scores and features.
  at::Tensor scores(const at::Tensor& x, const at::Tensor& y, const Batch& batch, Labels labels) const override;
  /// One pass over the batch's features for all three products, without an allocation.
  std::unique_ptr<JointPass> joint_pass() const override;

  /// True where `problem` offers a form that this oracle takes: features dense or CSR, float or double, on the CPU.
  static bool takes(const Problem& problem);

 private:
  AutodiffOracle autodiff_;
  std::unique_ptr<const native::Model> inner_, outer_;  // null: by autodiff
};

}  // namespace bilevel
