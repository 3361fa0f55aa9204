#pragma once
#include <memory>
#include <string>
#include <vector>

#include "bilevel/oracle/oracle.h"

namespace bilevel {

class Programs;

/// The names that make_oracle knows: "auto" | "native" | "autodiff" | "finite-difference" | "compiled".
const std::vector<std::string>& oracle_names();

/// The oracle for `problem`, which must outlive it. "auto" is native where the problem offers a linear form that it takes, else
/// autodiff; "finite-difference" stands on autodiff. Throws Error for another name, for "native" without a form, and for
/// "compiled" without `programs` or for a problem that it does not take (oracle/compiled.h).
std::unique_ptr<Oracle> make_oracle(const Problem& problem, const std::string& name = "auto",
                                    std::shared_ptr<const Programs> programs = nullptr);

}  // namespace bilevel
