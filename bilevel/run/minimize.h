#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bilevel/problem/problem.h"
#include "bilevel/run/driver.h"

namespace bilevel {

struct MinimizeOptions {
  std::string inner_rule = "sgd";                      // of rules(), or "lbfgs"
  int64_t inner_steps = 100;                           // in each outer step, which goes on from the y before; lbfgs: at most
  std::optional<double> lr = std::nullopt;             // of the inner rule; none: a safe step size from the curvature
  std::string estimator = "implicit";                  // of estimators()
  std::string solver = "cg";                           // of linear_solvers(), for the implicit estimator
  int64_t iterations = 20;                             // products with the Hessian in one linear solve
  double outer_lr = 0.1;                               // of Adam on x: about the change of each element in a step
  int64_t steps = 100;                                 // outer updates
  uint64_t seed = 0;                                   // of losses that draw random numbers
  std::function<Signal(const Record&)> callback = {};  // sees every record; kStop and kAbort end the run
  std::vector<std::string> violations() const;
};

struct MinimizeResult {
  at::Tensor x;                 // [dx], after the last update
  at::Tensor y;                 // [dy], the inner solution at it ([k, dy] for k inner problems)
  std::vector<Record> history;  // record k describes the point after k updates
  Outcome outcome = Outcome::kDone;
  Grade grade = Grade::kOk;  // the worst of the hypergradients
  std::string message;       // one sentence
  Cost cost;
};

/// Minimises F(x) = f(x, y*(x)) from the problem's initial point: the front door of the library.
///
/// Each outer step solves the inner problem from the y before (from y₀(x) where that depends on x), estimates dF/dx and takes a
/// step of Adam, projected onto the constraints on x. Numerical failure is rolled back (run/driver.h) and told in the result;
/// misuse is an Error. For more control put the same parts together: oracle, inner solver, estimator, outer optimiser,
/// DoubleLoop, Driver.
MinimizeResult minimize(const Problem& problem, const MinimizeOptions& options = {});

}  // namespace bilevel
