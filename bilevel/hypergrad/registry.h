#pragma once
#include <memory>
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

struct EstimatorRow {
  std::string name;
  std::string summary;  // one line
};
const std::vector<EstimatorRow>& estimators();

/// The estimator of that name, with its options read from `section` ([hypergradient]); the key `estimator` is the caller's.
/// Throws Error for a name that is not in `estimators()`.
std::unique_ptr<Estimator> make_estimator(const std::string& name, Section& section);

/// Every key that some estimator or its linear solver reads.
std::vector<std::string> estimator_keys();

}  // namespace bilevel
