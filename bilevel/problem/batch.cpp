#include "bilevel/problem/batch.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bilevel/core/error.h"

namespace bilevel {

BatchPlan BatchPlan::shuffled(int64_t samples, int64_t size, Stream stream) {
  require(size > 0, fmt::format("BatchPlan::shuffled: the batch size {} should be positive.", size));
  require(size <= samples,
          fmt::format("BatchPlan::shuffled: the batch size {} is larger than the number of samples, {}.", size, samples));
  BatchPlan plan;
  plan.plan_ = Shuffled{samples, size, stream, -1, {}};
  return plan;
}

BatchPlan BatchPlan::of_size(int64_t samples, int64_t size, Stream stream) {
  return size > 0 && size < samples ? shuffled(samples, size, stream) : full();
}

BatchPlan BatchPlan::fixed(at::Tensor indices, int64_t samples) {
  require(indices.defined() && indices.dim() == 2 && indices.numel() > 0,
          fmt::format("BatchPlan::fixed: the indices should be [T, B], and their shape is [{}].",
                      indices.defined() ? fmt::format("{}", fmt::join(indices.sizes(), ", ")) : "undefined"));
  require(
      at::isIntegralType(indices.scalar_type(), /*includeBool=*/false),
      fmt::format("BatchPlan::fixed: the indices should be integers, and they are {}.", c10::toString(indices.scalar_type())));
  indices = indices.to(at::kLong).contiguous();
  const int64_t low = indices.min().item<int64_t>(), high = indices.max().item<int64_t>();
  require(low >= 0, fmt::format("BatchPlan::fixed: the index {} is negative.", low));
  require(samples == 0 || high < samples,
          fmt::format("BatchPlan::fixed: the index {} is out of range for {} samples, which are counted from 0.", high, samples));
  BatchPlan plan;
  plan.plan_ = Fixed{indices};
  return plan;
}

at::Tensor BatchPlan::samples(int64_t t) const {
  require(t >= 0, fmt::format("BatchPlan::samples: t = {} is negative.", t));
  if (const auto* fixed = std::get_if<Fixed>(&plan_)) return fixed->indices[t % fixed->indices.size(0)];
  const auto* shuffled = std::get_if<Shuffled>(&plan_);
  if (!shuffled) return {};
  // What is left over at the end of an epoch is dropped, so that all batches weigh the same; another order leaves out others.
  const int64_t batches = shuffled->samples / shuffled->size;
  const int64_t epoch = t / batches;
  if (shuffled->epoch != epoch) {
    shuffled->order = shuffled->stream.at(epoch).permutation(shuffled->samples);
    shuffled->epoch = epoch;
  }
  return shuffled->order.narrow(0, (t % batches) * shuffled->size, shuffled->size);
}

}  // namespace bilevel
