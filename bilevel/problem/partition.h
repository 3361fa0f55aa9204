#pragma once
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "bilevel/core/stream.h"

namespace bilevel {

/// n samples cut once, at random, into m = ⌈n/B⌉ batches whose sizes differ by one at most. Each comes once in an epoch, in an
/// order of its own for each epoch: a function of t alone, so that a replayed step asks for the same batch.
///
/// Methods that remember something of each batch (SAGA) need such a fixed cut.
class Partition {
 public:
  /// B = 0: one batch of all samples.
  Partition(int64_t samples, int64_t size, Stream stream);

  int64_t count() const { return static_cast<int64_t>(batches_.size()); }
  int64_t number(int64_t t) const;  // which batch the t-th is
  /// int64; undefined where there is one batch, of all samples.
  const at::Tensor& samples(int64_t number) const { return batches_[static_cast<size_t>(number)]; }
  /// m · its size / n: the mean over the batches of weight · (mean over the batch) is the mean over all samples.
  double weight(int64_t number) const { return weights_[static_cast<size_t>(number)]; }

 private:
  Stream stream_;
  std::vector<at::Tensor> batches_;
  std::vector<double> weights_;
  mutable int64_t epoch_ = -1;
  mutable std::vector<int64_t> order_;
};

}  // namespace bilevel
