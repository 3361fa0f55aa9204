#pragma once
#include <string_view>

namespace bilevel {

/// How a numerical procedure ended.
enum class Status {
  kConverged,       // the tolerance was reached, or the procedure is exact
  kIterationLimit,  // all the iterations that were allowed were done: often what was asked for
  kIndefinite,      // negative curvature was met where the method needs none
  kSingular,        // a matrix is singular to rounding, or a division by zero ends the method's recursion
  kDiverged,        // the iterates grew instead of settling
  kNonFinite,       // a NaN or an infinity appeared
};
std::string_view to_string(Status status);

/// What a user should think of a result.
enum class Grade { kOk, kWarn, kBad };
std::string_view to_string(Grade grade);  // "OK", "WARN", "BAD"

inline bool failed(Status status) { return status != Status::kConverged && status != Status::kIterationLimit; }

}  // namespace bilevel
