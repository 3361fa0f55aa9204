#include "bilevel/algorithm/ma_soba.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bilevel/core/error.h"

namespace bilevel {

std::vector<std::string> MaSobaOptions::violations() const {
  std::vector<std::string> found = SingleLoopOptions::violations();
  if (!(averaging > 0 && averaging <= 1))
    found.push_back(fmt::format("averaging = {} should be more than 0 and at most 1", averaging));
  return found;
}

void read(Section& inner, Section& outer, MaSobaOptions& options) {
  read(inner, outer, static_cast<SingleLoopOptions&>(options));
  outer.read("averaging", options.averaging);
  outer.check(options.violations());
}

MaSobaOptions MaSoba::defaults() {
  MaSobaOptions options;
  options.decay = 0.5;
  return options;
}

MaSoba::MaSoba(const Oracle& oracle, MaSobaOptions options)
    : SingleLoop(oracle, options, "ma-soba"), averaging_(options.averaging) {
  const std::vector<std::string> violations = options.violations();
  require(violations.empty(), fmt::format("ma-soba: {}.", fmt::join(violations, "; ")));
}

void MaSoba::add_to(State& start) const {
  for (const char* name : {"ma-soba.inner", "ma-soba.outer"}) start.set(name, at::zeros_like(start.tensor("x")));
}

SingleLoop::Reduction MaSoba::reduction(State& state) const {
  const at::Tensor inner = state.tensor("ma-soba.inner"), outer = state.tensor("ma-soba.outer");
  return [inner, outer, averaging = averaging_](Level level, int64_t, const at::Tensor& quantities) {
    const at::Tensor& mean = level == Level::kInner ? inner : outer;
    // What concerns x comes last at both levels.
    const at::Tensor of_x = quantities.narrow(0, quantities.numel() - mean.numel(), mean.numel());
    mean.lerp_(of_x, averaging);
    of_x.copy_(mean);
  };
}

}  // namespace bilevel
