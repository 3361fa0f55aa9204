#pragma once
#include <ATen/core/Tensor.h>

#include "bilevel/inner/rule_solver.h"
#include "bilevel/problem/problem.h"

namespace bilevel {

/// The derivative by x [dx] of f(x, y_T(x)) by forward mode, one pass through all T steps for each direction (Franceschi, Donini,
/// Frasconi & Pontil 2017): what `unrolled` is checked against, with which it shares the rule's and the loss' derivatives only,
/// and of those the tangents in place of the cotangents. A start that depends on x is x itself.
at::Tensor forward_mode(const Problem& problem, const RuleSolver& solver, const at::Tensor& x, int64_t slice = 0);

}  // namespace bilevel
