#pragma once
#include <map>
#include <mutex>
#include <tuple>

#include <ATen/core/Tensor.h>

#include "bilevel/problem/problem.h"

namespace bilevel {

/// The curvature of a linear model, up to a factor: XᵀX / n with a column of ones for the bias. Features of images and tables are
/// badly scaled; solvers that know this matrix need a tenth of the gradients.
class Gram {
 public:
  /// Features [n, d], rows weighted alike.
  Gram(const at::Tensor& features, bool bias);

  /// v ↦ M⁻¹ v for weights [C, d] row by row and then, with a bias, [C]:  M = curvature · XᵀX / n + ridge I, the same for each
  /// class; the bias has a small ridge of its own. `curvature` is rounded to a power of two, so that a factor made once serves
  /// again.
  Problem::Preconditioner inverse(int64_t classes, double curvature, double ridge) const;

 private:
  at::Tensor factor(double curvature, double ridge) const;  // M⁻¹ [d + 1, d + 1]
  at::Tensor gram_;                                         // double
  at::ScalarType dtype_;
  bool bias_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<double, double>, at::Tensor> inverses_;
};

}  // namespace bilevel
