#pragma once
#include <functional>

#include "bilevel/problem/problem.h"

namespace bilevel {

struct NewtonDirection {
  at::Tensor p;        // downhill along −p
  double first = 1.0;  // the step to try first
};

/// H p ≈ gradient by conjugate gradients from p = 0, to a residual of η ‖gradient‖ (Nocedal & Wright 2006, algorithm 7.1). The
/// first direction of negative curvature ends it with what it has, and at once with the gradient, as far as a curvature of the
/// opposite sign would allow. `product` is v ↦ H v.
NewtonDirection newton_direction(const std::function<at::Tensor(const at::Tensor&)>& product, const at::Tensor& gradient,
                                 double eta, int64_t products, const Problem::Preconditioner& precondition);

}  // namespace bilevel
