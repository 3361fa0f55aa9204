#pragma once
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "bilevel/core/cost.h"
#include "bilevel/core/state.h"
#include "bilevel/core/status.h"
#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

/// What one call of `step` reports: record k describes x after k updates.
struct Record {
  int64_t step = 0;
  double outer_loss = 0, inner_loss = 0;
  double hypergradient_norm = 0;
  double stationarity = 0;
  std::map<std::string, double> metrics;  // of the problem
  Status status = Status::kConverged;     // kDiverged or kNonFinite makes the driver roll back
  Grade grade = Grade::kOk;
  std::string message;
  std::optional<Certificate> certificate;  // of the hypergradient, where the algorithm has one
  Cost cost;                               // since the record before
};

/// An outer iteration, as the driver sees it. State entries every algorithm has: `x` [dx], `y` [dy] and the integer `step`.
class Algorithm {
 public:
  virtual ~Algorithm() = default;
  virtual std::string_view name() const = 0;
  virtual State init() const = 0;
  /// Does n outer updates and describes the point that the first of them started from; a failure of any is in the status.
  virtual Record step(State& state, int64_t n) const = 0;
  /// Describes the point that the state holds, without an update.
  virtual Record evaluate(State& state) const = 0;
};

}  // namespace bilevel
