#include "bilevel/problem/partition.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"

namespace bilevel {

Partition::Partition(int64_t samples, int64_t size, Stream stream) : stream_(stream) {
  require(size >= 0 && size <= samples,
          fmt::format("Partition: batches of {} do not fit {} samples; 0 would mean all of them.", size, samples));
  if (size == 0 || size == samples) {
    batches_ = {at::Tensor{}};
    weights_ = {1.0};
    return;
  }
  const int64_t count = (samples + size - 1) / size;
  // Epochs count from 0; the cut itself has the number before them.
  const at::Tensor order = stream_.at(-1).permutation(samples);
  for (int64_t k = 0; k < count; ++k) {
    const int64_t begin = samples * k / count, end = samples * (k + 1) / count;
    batches_.push_back(order.narrow(0, begin, end - begin));
    weights_.push_back(static_cast<double>(count) * static_cast<double>(end - begin) / static_cast<double>(samples));
  }
}

int64_t Partition::number(int64_t t) const {
  require(t >= 0, fmt::format("Partition::number: t = {} is negative.", t));
  if (count() == 1) return 0;
  if (const int64_t epoch = t / count(); epoch != epoch_) {
    const at::Tensor order = stream_.at(epoch).permutation(count());
    order_.assign(order.const_data_ptr<int64_t>(), order.const_data_ptr<int64_t>() + count());
    epoch_ = epoch;
  }
  return order_[static_cast<size_t>(t % count())];
}

}  // namespace bilevel
