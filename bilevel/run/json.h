#pragma once
#include <nlohmann/json_fwd.hpp>

#include "bilevel/core/cost.h"
#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

// What logs, summaries and `hypergrad --json` write. Numbers that are not finite become null where the JSON is dumped.

nlohmann::ordered_json to_json(const SpotCheck& check);
nlohmann::ordered_json to_json(const Certificate& certificate);
/// Counts only; seconds and bytes are the machine's.
nlohmann::ordered_json to_json(const Cost& cost);
nlohmann::ordered_json machine_json(const Cost& cost);
/// As `bilevel hypergrad --json` prints it.
nlohmann::ordered_json to_json(const Hypergradient& hypergradient);

}  // namespace bilevel
