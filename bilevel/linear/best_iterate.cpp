#include "bilevel/linear/best_iterate.h"

#include <ATen/ATen.h>

#include <cmath>

namespace bilevel {

BestIterate::BestIterate(const System& system, const at::Tensor& b, const at::Tensor& q0)
    : system_(system), b_(b), q_(at::zeros_like(b)), r_(b.clone()) {
  if (!q0.defined()) return;
  const at::Tensor r0 = b - system.apply(q0);
  const double residual = at::linalg_vector_norm(r0).item<double>();
  if (!(residual < 1)) return;  // NaN among them
  q_ = q0.clone();
  r_ = r0;
  residual_ = residual;
}

void BestIterate::offer(const at::Tensor& q, double residual, bool exact) {
  // On a tie the later one, which may be the same iterate with its true residual.
  if (!(residual <= residual_)) return;
  q_.copy_(q);
  residual_ = residual;
  exact_ = exact;
}

LinearResult BestIterate::finish(double tolerance) {
  if (!exact_) {
    const double residual = at::linalg_vector_norm(b_ - system_.apply(q_)).item<double>();
    if (std::isfinite(residual)) residual_ = residual;  // else an operator that has become NaN on the way
  }
  if (!failed(result.status)) result.status = residual_ <= tolerance ? Status::kConverged : Status::kIterationLimit;
  result.solution = q_;
  result.relative_residual = residual_;
  describe(result);
  return std::move(result);
}

}  // namespace bilevel
