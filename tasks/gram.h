#pragma once
#include <map>
#include <mutex>
#include <tuple>

#include <ATen/core/Tensor.h>

#include "bilevel/problem/loss.h"
#include "bilevel/problem/problem.h"

namespace bilevel {

/// The curvature of a linear model, up to a factor: XᵀX / n with a column of ones for the bias. Features of images and tables are
/// badly scaled; solvers that know this matrix need a tenth of the gradients.
class Gram {
 public:
  /// Features [n, d], rows weighted alike.
  Gram(const at::Tensor& features, bool bias);

  /// v ↦ M⁻¹ v for weights [C, d] row by row and then, with a bias, [C]:  M = curvature · XᵀX / n + ridge I, the same for each
  /// class; the bias has a small ridge of its own. `curvature` is rounded to a power of two, and above 100 columns `ridge` too,
  /// so that a factor made once serves again.
  Problem::Preconditioner inverse(int64_t classes, double curvature, double ridge) const;
  /// The same with a ridge for each feature [d]: M = curvature · XᵀX / n + diag(ridge). Its factor is made anew each time.
  Problem::Preconditioner inverse(int64_t classes, double curvature, const at::Tensor& ridge) const;

  double mean_square() const;  // of the features

 private:
  at::Tensor factor(double curvature, double ridge) const;             // M⁻¹ [d + 1, d + 1]
  at::Tensor factor(double curvature, const at::Tensor& ridge) const;  // the same of a ridge for each feature
  Problem::Preconditioner preconditioner(const at::Tensor& inverse, int64_t classes) const;
  at::Tensor gram_;  // double
  at::ScalarType dtype_;
  bool bias_;
  mutable std::mutex mutex_;
  mutable std::map<std::pair<double, double>, at::Tensor> inverses_;
};

/// The curvature of one logit at even odds: p (1 − p) of C classes alike, a little more for those that are not; of the squared
/// loss 1.
double even_odds_curvature(const Loss& loss, int64_t classes);

}  // namespace bilevel
