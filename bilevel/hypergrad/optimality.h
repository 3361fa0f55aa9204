#pragma once
#include <memory>

#include "bilevel/inner/inner_solver.h"
#include "bilevel/oracle/oracle.h"

namespace bilevel {

struct Optimality {
  std::unique_ptr<Linearization> linearization;  // of r̂; null where r̂ is r itself
  at::Tensor scale;                              // r̂ = scale ⊙ ρ; undefined: r̂ = ρ
};

/// The linearization at (x, y) of what `solver` drives to zero where y moves freely, given that of the problem's own r there:
///
///   r̂(x, y) = ρ(x, y, r(x, y)),   ρ = InnerSolver::residual
///
/// A weight decay, AdamW's too, and what x has to do with it through the rule's hyperparameters are
/// differentiated. Where ρ is elementwise with a slope d > 0 by r (all rules at rest), r̂ is divided by d, held fixed: that
/// changes neither the root nor what it owes to x, and ∂y r̂ = ∂y r + diag(∂yρ/d) is as symmetric as ∂y r. `r` must outlive the
/// result.
Optimality optimality(const InnerSolver& solver, const Problem& problem, const at::Tensor& x, const at::Tensor& y,
                      Linearization& r);

}  // namespace bilevel
