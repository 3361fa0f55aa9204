#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/linear/linear_solver.h"

namespace bilevel {

struct SolverRow {
  std::string name;
  std::string description;  // one line
  std::function<std::unique_ptr<LinearSolver>(Section&)> make;
};

/// All linear solvers, by name.
const std::vector<SolverRow>& linear_solvers();

/// The solver of that name with its options from `options`. Throws Error, at the key `solver`, for an unknown name.
std::unique_ptr<LinearSolver> make_linear_solver(const std::string& name, Section& options);

}  // namespace bilevel
