#pragma once
#include <string>
#include <vector>

namespace bilevel {

struct AlgorithmRow {
  std::string name;
  std::string summary;  // one line
};
/// The algorithms that [run] algorithm may name.
const std::vector<AlgorithmRow>& algorithms();

}  // namespace bilevel
