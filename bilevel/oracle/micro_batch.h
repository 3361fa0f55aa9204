#pragma once
#include <memory>
#include <vector>

#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// Splits every batch into micro-batches of at most `size` samples and adds up their losses, gradients and products, weighted by
/// their samples: the full batch's to rounding, in the memory of one micro-batch. For losses that are means over the samples plus
/// what does not depend on them (not for batch statistics). The oracle that it stands on must outlive it.
///
/// No graph outlives a product, so each product takes the gradient of every micro-batch again: about twice the price. Blocks of
/// directions share it. A batch that fits into one micro-batch is passed on as it is. Losses that draw random numbers draw
/// others in each micro-batch.
class MicroBatchOracle final : public Oracle {
 public:
  /// Throws Error for a size below 1.
  MicroBatchOracle(const Oracle& oracle, int64_t size);
  std::unique_ptr<Linearization> linearize_inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  Gradients inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  Gradients outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  std::unique_ptr<OutputSpace> output_space(const at::Tensor& x, const at::Tensor& y,
                                            const OutputSamples& samples) const override;

 private:
  const Oracle& oracle_;
  int64_t size_;
};

}  // namespace bilevel
