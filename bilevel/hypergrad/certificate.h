#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

struct BoundOptions {
  int64_t dense_dim = 200;  // up to this many inner variables ∂y r is formed, by as many products: all is then exact to rounding
  int64_t products = 100;   // beyond: at most so many in each linear solve, and in Lanczos' method
  int64_t newton_steps = 6;  // towards y*; two or three from where an inner solve usually stops
  int64_t probes = 3;        // of the second derivatives along y, each two gradients and a product
  double off_by_half = 0.1;  // WARN where the value is off by more than this share of itself
  double off_by_all = 1.0;   // BAD: no better than zero
  std::vector<std::string> violations() const;
};

/// Puts an error bound, what it rests on, and the distance to F into the certificate of a hypergradient that claims to be ∇F, and
/// the distance alone into that of any other. With
///
///   φ(y) = ∂x f − (∂x r)ᵀ (∂y r)⁻ᵀ ∂y f   at y,   ∇F(x) = φ(y*(x)),
///
/// Newton's method goes from the y that was reached to a y₁ with r ≈ 0, the linear system is solved anew there, and the value v₁
/// that comes out is compared with h.value. With M = (∂x r)ᵀ (∂y r)⁻ᵀ and ρ = ∂y f − (∂y r)ᵀ q₁
///
///   ‖h.value − ∇F‖ ≤ ‖h.value − v₁‖ + ‖M‖ ‖ρ‖ + (‖V‖ + ‖M‖ ‖W‖) ‖r(y₁)‖ / μ + rounding,
///
/// where V and W are the derivatives of ∂x f − (∂x r)ᵀ q₁ and of ρ along y. The first term is what was wrong and is found out
/// exactly; the others are small where Newton's method and the solve went well, so that the bound is tight. Rounding is measured:
/// everything is computed once more at a y moved by some units in the last place (after Moré & Wild 2011).
///
/// μ > 0 with ∂y r ⪰ μ is Problem::inner_strong_convexity plus the rule's weight decay; or the smallest eigenvalue, exact, of the
/// matrix at y₁ less its rounding and its change on the way to y*; or, matrix-free, Lanczos' smallest Ritz value θ less what it
/// may be above the smallest eigenvalue: with k products from a random start, λ ≥ θ − ε (λ_max − λ_min) but for a probability of
/// 1.648 √d exp(−√ε (2k − 1)) (Kuczyński & Woźniakowski 1992, theorem 3.2), here 1e-3. Where nothing positive is left there is
/// no bound. Norms come from power iterations; they are the part that is estimated and not proven.
///
/// Where y is constrained all this is done on the active set of y*, in coordinates of its free directions, where the problem is
/// one without constraints (hypergrad/active_set_newton.h). The set is found by going on from that of the y that was reached
/// until the conditions of a minimum hold; the bound rests on its being that of y*, which is checked: each force that holds a
/// coordinate, and the distance of each other one from its bounds and kinks, must be more than r(y₁) and rounding may change in
/// it. If one is not: no bound.
///
/// Bounds are about the outer batch of `in`, and the full inner data. A value with a known bias (Certificate::bias) is BAD only
/// where it points uphill, and WARN, with its length and cosine, where it is off by more than off_by_half.
void certify(Hypergradient& h, const EstimatorInput& in, const BoundOptions& options = {});

}  // namespace bilevel
