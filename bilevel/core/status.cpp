#include "bilevel/core/status.h"

namespace bilevel {

std::string_view to_string(Status status) {
  switch (status) {
    case Status::kConverged: return "converged";
    case Status::kIterationLimit: return "iteration limit";
    case Status::kIndefinite: return "indefinite";
    case Status::kSingular: return "singular";
    case Status::kDiverged: return "diverged";
    case Status::kNonFinite: return "non-finite";
  }
  return "unknown";
}

std::string_view to_string(Grade grade) {
  switch (grade) {
    case Grade::kOk: return "OK";
    case Grade::kWarn: return "WARN";
    case Grade::kBad: return "BAD";
  }
  return "unknown";
}

}  // namespace bilevel
