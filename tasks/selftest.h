#pragma once
#include <functional>
#include <string>
#include <vector>

namespace bilevel {

struct CheckResult {
  bool passed = false;
  std::string detail;  // one line: the worst deviation with what it is allowed, or what went wrong
};

/// One comparison of this build with numbers from outside.
struct Check {
  std::string name;    // "E1 hypergradients"
  std::string source;  // whose numbers they are, one line
  std::function<CheckResult()> run;
};

/// The numbers of other programs and of closed forms that this library must reproduce: hypertorch's logistic regression (E1),
/// differentiable optimisers of higher (E2), data hyper-cleaning on digits (E3), MAML and iMAML (E4), and the gold tests of the
/// hypergradient (G). Each compares a hypergradient or a trace digit by digit in double; together they take less than a minute.
/// A hypergradient of zero, or the direct term alone, passes none of those that compare one.
std::vector<Check> outside_checks();

/// Runs one; what it throws is a failure.
CheckResult run_check(const Check& check);

}  // namespace bilevel
