#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/outer/outer_optimizer.h"

namespace bilevel {

struct OuterOptimizerRow {
  std::string name;
  std::string description;  // one line
  std::function<std::unique_ptr<OuterOptimizer>(Section&)> make;
};

/// All outer optimisers, by name.
const std::vector<OuterOptimizerRow>& outer_optimizers();

/// The outer optimiser of that name with its options from `options`, along means of the last `smoothing` hypergradients where
/// that key is above 1 (outer/smoothed.h). Throws Error, at the key `rule`, for an unknown name.
std::unique_ptr<OuterOptimizer> make_outer_optimizer(const std::string& name, Section& options);

}  // namespace bilevel
