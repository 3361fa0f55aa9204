#include "bilevel/algorithm/srba.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "bilevel/core/error.h"

namespace bilevel {

std::vector<std::string> SrbaOptions::violations() const {
  std::vector<std::string> found = SingleLoopOptions::violations();
  if (period < 0) found.push_back(fmt::format("period = {} is negative; 0 means half of the batches of both losses", period));
  return found;
}

void read(Section& inner, Section& outer, SrbaOptions& options) {
  read(inner, outer, static_cast<SingleLoopOptions&>(options));
  outer.read("period", options.period);
  outer.check(options.violations());
}

Srba::Srba(const Oracle& oracle, SrbaOptions options) : SingleLoop(oracle, options, "srba"), period_(options.period) {
  const std::vector<std::string> violations = options.violations();
  require(violations.empty(), fmt::format("srba: {}.", fmt::join(violations, "; ")));
  if (period_ == 0) period_ = std::max<int64_t>(1, (batches(Level::kInner).count() + batches(Level::kOuter).count()) / 2);
}

}  // namespace bilevel
