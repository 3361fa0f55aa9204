#pragma once
#include <memory>
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/inner/inner_solver.h"
#include "bilevel/inner/rule_solver.h"

namespace bilevel {

struct RuleRow {
  std::string name;
  std::string summary;  // one line
};
const std::vector<RuleRow>& rules();
/// What `[inner] solver` may be, beside "rule".
const std::vector<RuleRow>& inner_solvers();

/// The rule of that name, with its options read from `section`, and clip_norm, which goes with all of them; lr stays with
/// RuleSolverOptions. `learned`: the hyperparameters that x determines (the names in Problem::rule_hyperparameters).
std::unique_ptr<UpdateRule> make_rule(const std::string& name, Section& section, const std::vector<std::string>& learned = {});

/// The inner solver of `[inner]`: reads solver ("rule", or one of inner_solvers()) and its options; for a rule those are rule,
/// the rule's own and those of RuleSolverOptions. `x` is where the names of the hyperparameters that x determines are asked for.
/// `batches`, int64 [T, B], fixes the minibatches; undefined: full batch, or shuffled by `seed` where batch > 0.
std::unique_ptr<InnerSolver> make_inner_solver(Section& section, const Problem& problem, const at::Tensor& x, uint64_t seed,
                                               const at::Tensor& batches);

}  // namespace bilevel
