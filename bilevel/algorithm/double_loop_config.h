#pragma once
#include "bilevel/algorithm/double_loop.h"
#include "bilevel/algorithm/registry.h"
#include "bilevel/core/config.h"

namespace bilevel {

/// A double loop as [inner], [hypergradient] and [outer] describe it: solver, estimator and outer optimiser of their registries.
using DoubleLoopMaker = std::function<std::unique_ptr<DoubleLoop>(const Oracle& oracle, std::vector<std::string>& notes)>;
DoubleLoopMaker read_double_loop(Section root, uint64_t seed);
/// One that trains y and leaves x where it is: [hypergradient] stays empty, and [outer] has no rule.
DoubleLoopMaker read_training(Section root, uint64_t seed);

/// After --set has put in another part, the file still has the keys of the one before: those among `keys`, or all where it is
/// empty, are dropped and told of in `notes`. What nobody knows stays an error.
void drop_keys_of_others(Section& section, const std::string& table, const std::string& chosen_by,
                         const std::function<std::vector<std::string>()>& keys, std::vector<std::string>& notes);

}  // namespace bilevel
