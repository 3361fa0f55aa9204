#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bilevel/core/status.h"

namespace bilevel {

/// One random problem, its hypergradient, and what the certificate said.
struct CertificateCase {
  int64_t seed = 0;
  std::string family;     // "implicit", "unrolled", "constrained"
  std::string problem;    // "quadratic", "ridge", "logistic", "mlp"; constrained: "box", "lasso", "simplex", "non-negative"
  std::string dtype;      // "float32", "float64"
  std::string estimator;  // "implicit cg", "implicit dense", "unrolled", "truncated"
  std::string route;      // of the certificate: "dense" (∂y r is formed) or "products"
  std::string damage;     // "" or "wrong sign", "wrong sign in the products", "stale batch", "early stop", "NaN", "indefinite",
                          // "lost steps", "wrong set"
  double condition = 0;
  double norm = 0, error = 0;  // ‖value‖, ‖value − reference‖, of a reference in double: of what the bound is about
  double named_error = 0;      // of the function that is named: for a truncated unroll, of the last K steps with y_{T−K} held
  std::optional<double> bound;
  Grade grade = Grade::kOk;  // with the spot check
  Grade bound_grade = Grade::kOk;
  std::string check;  // "agrees", "disagrees", "inconclusive", "failed"
  std::string message;
  bool says_off = false;  // a corrected solve gave another value
  /// Warned of, but not called wrong: the slopes drown in rounding, and no bound vouches for the value.
  bool uncertain() const { return grade == Grade::kWarn && check == "inconclusive" && !says_off; }
  bool convex() const { return problem != "mlp"; }
};

/// Makes the problem of `seed`, damages it if seed % 3 == 0, and certifies its hypergradient.
CertificateCase certificate_case(int64_t seed, const std::string& family);

/// How often the certificates were right. An alarm is a WARN or a BAD that says that the value is wrong; that nothing can be
/// certified is counted apart.
struct CertificateSummary {
  int64_t cases = 0, bounds = 0, bounds_held = 0;          // bounds of undamaged cases
  int64_t convex = 0, no_bound = 0;                        // undamaged convex cases
  double median_tightness = 0;                             // bound/error of undamaged convex cases
  double share_within_ten = 0;                             // of them with a bound of at most ten errors
  int64_t damaged = 0, caught = 0, damaged_uncertain = 0;  // uncertain: warned of, but not called wrong
  int64_t damaged_right = 0;                               // called OK, and the value is right to 10 % all the same
  int64_t undamaged = 0, alarms = 0, false_alarms = 0;     // false: the value is right to 10 %
  int64_t undamaged_uncertain = 0, missed_errors = 0;      // missed: off by more than 10 %, and graded OK
};
CertificateSummary summarise(const std::vector<CertificateCase>& cases);

}  // namespace bilevel
