#pragma once
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bilevel/core/config.h"

namespace bilevel {

/// What came of a claim, the worst first.
enum class Verdict { kNotSeen, kPartly, kConfirmed, kNotRun };
std::string_view to_string(Verdict verdict);  // "not seen here", "partly", "confirmed", "not run"

/// Where a measured mean must lie: between `at_least` and `at_most`, one of which may be infinite.
struct Bar {
  double at_least = -std::numeric_limits<double>::infinity();
  double at_most = std::numeric_limits<double>::infinity();
  bool holds(double value) const { return at_least <= value && value <= at_most; }
  std::string text() const;  // "at least 0.5", "0.9 to 1.1"
};

/// One claim of a paper, and how it is judged: a table [claims.NAME] of a study.toml.
struct Claim {
  std::string name;
  std::string says;        // the claim in one sentence
  std::string source;      // section, table or equation of the paper
  std::string paper;       // the paper's number, or its words where it has none
  Bar bar;                 // for `measured`
  std::string why;         // why that bar
  bool full_only = false;  // too small for its bar with --quick
  // What is known to come out worse than confirmed, and why; "confirmed" and "" unless given.
  Verdict known = Verdict::kConfirmed;
  std::string reason;
};
/// Keys: says, source, paper, at_least, at_most, why, full_only, known ("partly" or "not seen here"), reason.
Claim read_claim(Section section, const std::string& name);

/// What a study measured for a claim: a value for each seed, or one where nothing is random.
struct Measured {
  std::vector<double> values;
  double mean() const;
  double standard_error() const;  // 0 for a single value
};

struct Judgement {
  Claim claim;
  Measured measured;  // empty where it was not run
  Verdict verdict = Verdict::kNotRun;
  std::string reason = {};  // one sentence; empty where it is confirmed

  /// Worse than what the study says is known: a build that does not do what it did.
  bool unexpected() const { return verdict < claim.known; }
};

/// confirmed: the mean lies within the bar, and with several values the mean ± two standard errors too; partly: the mean alone
/// does; not seen here: it does not, or something is not finite.
Judgement judge(const Claim& claim, Measured measured);

}  // namespace bilevel
