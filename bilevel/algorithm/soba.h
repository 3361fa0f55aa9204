#pragma once
#include "bilevel/algorithm/single_loop.h"

namespace bilevel {

/// SOBA (Dagréou et al. 2022, Algorithm 1): the step goes along what one batch of each loss gives.
class Soba final : public SingleLoop {
 public:
  /// As published, steps shrink with √t.
  static SingleLoopOptions defaults() { return {.decay = 0.5}; }
  explicit Soba(const Oracle& oracle, SingleLoopOptions options = defaults()) : SingleLoop(oracle, options, "soba") {}
  std::string_view name() const override { return "soba"; }
};

}  // namespace bilevel
