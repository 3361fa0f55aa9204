#pragma once
#include "bilevel/oracle/oracle.h"

namespace bilevel {

struct CurvatureOptions {
  int64_t products = 20;    // most Hessian-vector products; 5–15 are customary
  double tolerance = 0.01;  // stop when the bound is this tight, relatively
  uint64_t seed = 0;        // of the starting vector
};

/// A bound L on the largest curvature |λ|max(H) of the loss at one point, by Lanczos: the largest Ritz value plus its residual
/// (Zhou & Li 2011, "Bounding the spectrum of large Hermitian matrices"). Plain power iteration on as many products falls short
/// by up to ln(d)/products (Kuczyński & Woźniakowski 1992), and a step sized by that is past the limit. 0 where H is zero along
/// the starting vector; NaN where a product is not finite.
///
/// A step size of 1/L is safe for gradient descent as long as the curvature does not grow on the way: on quadratics always, for
/// logistic and softmax losses from y = 0, where their curvature is largest; for networks it is a start, and divergence is
/// checked.
double largest_curvature(Linearization& linearization, const CurvatureOptions& options = {});

/// The step size that "auto" means for rules whose steps do not scale with the gradient (Adam), unless their own default is
/// larger (Adadelta: 1): no curvature bounds it, and with 0.01 a weight can travel by 1 in 100 steps.
inline constexpr double kScaleFreeLr = 0.01;

}  // namespace bilevel
