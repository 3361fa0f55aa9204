#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bilevel/algorithm/algorithm.h"
#include "bilevel/core/config.h"
#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// Makes an algorithm for an oracle's problem, and refuses keys that nobody has read by then; what was left aside is told in
/// `notes`. The oracle must outlive the algorithm.
using AlgorithmMaker = std::function<std::unique_ptr<Algorithm>(const Oracle& oracle, std::vector<std::string>& notes)>;

struct AlgorithmRow {
  std::string name;
  std::string summary;  // one line
  /// Reads [inner], [hypergradient] and [outer] of a configuration's root, as far as they do without the problem, so that a slip
  /// is told before the data are read.
  std::function<AlgorithmMaker(Section root, uint64_t seed)> read;
  bool in_several_processes = true;  // may share the samples with others: it asks for the same in each of them, in the same order
};
/// The algorithms that [run] algorithm may name.
const std::vector<AlgorithmRow>& algorithms();
/// Throws Error for another name.
const AlgorithmRow& algorithm_row(const std::string& name);

}  // namespace bilevel
