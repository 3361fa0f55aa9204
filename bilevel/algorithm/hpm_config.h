#pragma once
#include "bilevel/algorithm/registry.h"

namespace bilevel {

/// Populations (algorithm/hpm.h): [outer.population] has their options, and [inner], [hypergradient] and [outer] those of the
/// members.
AlgorithmMaker read_hpm(Section root, uint64_t seed);
AlgorithmMaker read_pbt(Section root, uint64_t seed);            // neither estimator nor outer rule: x moves by mutation alone
AlgorithmMaker read_random_search(Section root, uint64_t seed);  // nor that

}  // namespace bilevel
