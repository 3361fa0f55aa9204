#include "bilevel/algorithm/saba.h"

#include <ATen/ATen.h>

namespace bilevel {
namespace {

// In `quantities` the direction; `memory`, a row, and `mean` go on.
template <class T>
void saga(T* quantities, T* memory, T* mean, int64_t size, T share) {
  for (int64_t j = 0; j < size; ++j) {
    const T now = quantities[j], change = now - memory[j];
    quantities[j] = change + mean[j];
    mean[j] += share * change;
    memory[j] = now;
  }
}

}  // namespace

void Saba::add_to(State& start) const {
  const at::Tensor& x = start.tensor("x");
  const int64_t dx = x.numel(), dy = start.tensor("y").numel();
  const auto add = [&](const char* name, Level level, int64_t size) {
    start.set(std::string("saba.") + name, at::zeros({batches(level).count(), size}, x.options()));
    start.set(std::string("saba.") + name + "_mean", at::zeros({size}, x.options()));
  };
  add("inner", Level::kInner, 2 * dy + dx);
  add("outer", Level::kOuter, dy + dx);
}

SingleLoop::Reduction Saba::reduction(State& state) const {
  struct Table {
    at::Tensor rows, mean;
  };
  const Table inner{state.tensor("saba.inner"), state.tensor("saba.inner_mean")};
  const Table outer{state.tensor("saba.outer"), state.tensor("saba.outer_mean")};
  return [inner, outer](Level level, int64_t number, const at::Tensor& quantities) {
    const Table& memory = level == Level::kInner ? inner : outer;
    const int64_t size = quantities.numel();
    const double share = 1.0 / static_cast<double>(memory.rows.size(0));
    const auto in_place = [&](auto zero) {
      using T = decltype(zero);
      saga(quantities.mutable_data_ptr<T>(), memory.rows.mutable_data_ptr<T>() + number * size, memory.mean.mutable_data_ptr<T>(),
           size, static_cast<T>(share));
    };
    if (quantities.is_cpu() && quantities.scalar_type() == at::kFloat) return in_place(float());
    if (quantities.is_cpu() && quantities.scalar_type() == at::kDouble) return in_place(double());
    const at::Tensor row = memory.rows.select(0, number), change = quantities - row;
    row.copy_(quantities);
    quantities.copy_(change + memory.mean);
    memory.mean.add_(change, share);
  };
}

}  // namespace bilevel
