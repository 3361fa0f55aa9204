#pragma once
#include <string>

#include "bilevel/core/cost.h"
#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

// What logs, summaries and `hypergrad --json` write, each one JSON object. Numbers that are not finite are null.

std::string to_json(const Certificate& certificate);
/// Counts only; seconds and bytes are the machine's.
std::string to_json(const Cost& cost);
std::string machine_json(const Cost& cost);
/// As `bilevel hypergrad --json` prints it; without `with_values`, all but the array `hypergradient`.
std::string to_json(const Hypergradient& hypergradient, bool with_values = true);

}  // namespace bilevel
