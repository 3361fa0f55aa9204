#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "bilevel/core/layout.h"
#include "bilevel/hypergrad/estimator.h"
#include "bilevel/run/driver.h"

namespace bilevel {

// What runs and commands write, each one JSON object. Numbers that are not finite are null; seconds and bytes stand in an object
// `machine` wherever the rest is the same for every run.

/// A line of log.jsonl, without its end.
std::string to_json(const Record& record, const std::vector<RollBack>& since_last);
/// summary.json.
std::string to_json(const RunResult& result, std::string_view algorithm);
/// layout.json.
std::string to_json(const Layout& x, const Layout& y, const std::string& identity);
/// As `bilevel hypergrad --json` prints it; without `with_values`, all but the array `hypergradient`.
std::string to_json(const Hypergradient& hypergradient, bool with_values = true);

}  // namespace bilevel
