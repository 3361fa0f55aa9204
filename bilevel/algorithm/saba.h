#pragma once
#include "bilevel/algorithm/single_loop.h"

namespace bilevel {

/// SABA (Dagréou et al. 2022, Algorithm 2): SAGA (Defazio, Bach & Lacoste-Julien 2014) on each of the five quantities, so that
/// the variance goes to zero at the solution and constant steps converge to it.
///
///     D = new_k − memory_k + mean(memory);   memory_k ← new_k
///
/// State: `saba.inner` [batches, 2 dy + dx], `saba.outer` [batches, dy + dx], and their means. The memory begins at zero, and is
/// changed in place.
class Saba final : public SingleLoop {
 public:
  static SingleLoopOptions defaults() { return {.decay = 0.0}; }
  explicit Saba(const Oracle& oracle, SingleLoopOptions options = defaults()) : SingleLoop(oracle, options, "saba") {}
  std::string_view name() const override { return "saba"; }

 protected:
  Reduction reduction(State& state) const override;
  void add_to(State& start) const override;
};

}  // namespace bilevel
