#pragma once
#include <cstdint>

#include "bilevel/linear/linear_solver.h"

namespace bilevel {

/// A_k = U Λ Uᵀ, positive semidefinite of rank at most k, and what was learned on the way.
struct LowRank {
  at::Tensor U;             // [d, k'] orthonormal columns, k' ≤ k; double
  at::Tensor values;        // [k'], positive, falling; double
  double lowest = 0;        // the smallest eigenvalue of ΩᵀAΩ with orthonormal Ω: never below that of A
  bool indefinite = false;  // `lowest` is negative beyond rounding; A_k then is of the positive part of ΩᵀAΩ alone
  bool finite = true;       // the products were
};

/// The Nyström approximation A_k = (AΩ)(ΩᵀAΩ)⁺(AΩ)ᵀ of a symmetric A, from k products. Ω [d, k] has orthonormal columns: random
/// ones, or `coordinates`: random coordinate directions (Hataya & Yamada 2023). With k ≥ d it is A itself.
LowRank nystrom_approximation(const Operator& A, int64_t rank, bool coordinates, uint64_t seed, const at::TensorOptions& options);

}  // namespace bilevel
