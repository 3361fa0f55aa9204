#include "bilevel/inner/newton_direction.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "bilevel/core/vectors.h"

namespace bilevel {

NewtonDirection newton_direction(const std::function<at::Tensor(const at::Tensor&)>& product, const at::Tensor& gradient,
                                 double eta, int64_t products, const Problem::Preconditioner& precondition) {
  const double target = eta * norm_of(gradient);
  at::Tensor p = at::zeros_like(gradient), r = gradient;
  at::Tensor z = precondition ? precondition(r) : r, d = z;
  double rz = dot_of(r, z);
  for (int64_t k = 0; k < products; ++k) {
    const at::Tensor Hd = product(d);
    const double curvature = dot_of(d, Hd);
    if (!(curvature > 0)) {
      if (k > 0) break;
      const double scale = 1.0 / std::max(1.0, norm_of(gradient));
      return {d, curvature < 0 ? rz / -curvature : scale};
    }
    const double alpha = rz / curvature;
    add_scaled(p, alpha, d);
    r = sum_of(r, -alpha, Hd);
    if (!(norm_of(r) > target)) break;
    z = precondition ? precondition(r) : r;
    const double rz_new = dot_of(r, z);
    d = sum_of(z, rz_new / rz, d);
    rz = rz_new;
  }
  return {p, 1.0};
}

}  // namespace bilevel
