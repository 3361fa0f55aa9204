#include "bilevel/algorithm/registry.h"

namespace bilevel {

const std::vector<AlgorithmRow>& algorithms() {
  static const std::vector<AlgorithmRow> rows = {
      {"double-loop",
       "solve the inner problem, estimate the hypergradient, move x, project; any solver × estimator × outer optimiser"},
  };
  return rows;
}

}  // namespace bilevel
