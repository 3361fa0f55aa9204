#pragma once
#include "bilevel/algorithm/registry.h"
#include "bilevel/core/config.h"

namespace bilevel {

/// A double loop as [inner], [hypergradient] and [outer] describe it: solver, estimator and outer optimiser of their registries.
AlgorithmMaker read_double_loop(Section root, uint64_t seed);

/// After --set has put in another part, the file still has the keys of the one before: those among `keys`, or all where it is
/// empty, are dropped and told of in `notes`. What nobody knows stays an error.
void drop_keys_of_others(Section& section, const std::string& table, const std::string& chosen_by,
                         const std::function<std::vector<std::string>()>& keys, std::vector<std::string>& notes);

}  // namespace bilevel
