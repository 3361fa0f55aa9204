#pragma once
#include <functional>
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/linear/linear_solver.h"

namespace bilevel {

struct PreconditionerOptions {
  /// "none" | "problem", "rule": the operator's own, which comes from there | "diagonal" | "nystrom". A configuration's default
  /// is "none".
  std::string kind = "problem";
  int64_t probes = 20;  // products spent on the diagonal; exact where A is no larger
  int64_t rank = 20;    // products spent on the Nyström approximation
  uint64_t seed = 0;    // of their random vectors; not read from TOML
  std::vector<std::string> violations() const;
};
/// Keys: precondition, with `probes` or `rank` beside it where that kind has one.
void read(Section& section, PreconditionerOptions& options);
/// The key `precondition` alone: one of the kinds, or true for "problem" and false for "none".
std::string read_precondition(Section& section);

/// v ↦ M⁻¹ v, on [d] and on rows [k, d], with M symmetric positive definite and near A + damping·I; empty for none.
///
///   diagonal   M = diag |dᵢ|,  d = Σ z ⊙ A z / Σ z ⊙ z over random signs z (Bekas, Kokiopoulou & Saad 2007)
///   nystrom    M⁻¹ = (λ_k + δ) U (Λ + δI)⁻¹ Uᵀ + (I − U Uᵀ),  U Λ Uᵀ of nystrom_approximation.h (Frangella, Tropp & Udell 2023,
///   eq. 5.3)
///
/// `like` gives dtype and device. Both take products with A, and neither fails: where A says nothing useful (not finite, no
/// positive curvature), there is no preconditioner.
std::function<at::Tensor(const at::Tensor&)> make_preconditioner(const Operator& A, double damping, const at::Tensor& like,
                                                                 const PreconditionerOptions& options);

}  // namespace bilevel
