#pragma once
#include <memory>
#include <string>
#include <vector>

#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// The names that make_oracle knows: "auto" | "native" | "autodiff" | "finite-difference".
const std::vector<std::string>& oracle_names();

/// The oracle for `problem`, which must outlive it. "auto" is native where the problem offers a linear form that it takes, else
/// autodiff; "finite-difference" stands on autodiff. Throws Error for another name, and for "native" without a form.
std::unique_ptr<Oracle> make_oracle(const Problem& problem, const std::string& name = "auto");

}  // namespace bilevel
