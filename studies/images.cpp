#include "studies/images.h"

#include <ATen/ATen.h>

#include "bilevel/core/stream.h"
#include "bilevel/problem/dataset.h"

namespace bilevel {

std::pair<at::Tensor, at::Tensor> draw_fashion(const std::string& study, const std::string& split, int64_t count, int64_t seed) {
  DataSpec spec;
  spec.builtin = "fashion-mnist";
  spec.split = split;
  const Dataset data = load_dataset(spec);
  const at::Tensor order =
      Stream(static_cast<uint64_t>(seed), study + " " + split).at(0).permutation(data.size()).narrow(0, 0, count);
  return {data.features.view({data.size(), 28, 28}).index_select(0, order), data.labels.index_select(0, order)};
}

}  // namespace bilevel
