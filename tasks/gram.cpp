#include "tasks/gram.h"

#include <cmath>

#include <ATen/ATen.h>

namespace bilevel {
namespace {

double power_of_two(double value) { return std::exp2(std::round(std::log2(value))); }

}  // namespace

Gram::Gram(const at::Tensor& features, bool bias) : dtype_(features.scalar_type()), bias_(bias) {
  const at::NoGradGuard no_grad;
  const auto n = static_cast<double>(features.size(0));
  const at::Tensor G = features.t().mm(features).div(n);
  if (!bias) {
    gram_ = G.to(at::kDouble);
    return;
  }
  const at::Tensor mean = features.mean(0).unsqueeze(1);
  gram_ = at::cat({at::cat({G, mean}, 1), at::cat({mean.t(), at::ones({1, 1}, G.options())}, 1)}).to(at::kDouble);
}

at::Tensor Gram::factor(double curvature, double ridge) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  at::Tensor& inverse = inverses_[{curvature, ridge}];
  if (!inverse.defined()) {
    inverse = factor(curvature, at::scalar_tensor(ridge, at::kDouble));
    if (inverses_.size() > 16)
      inverses_.erase(inverses_.begin()->first == std::pair(curvature, ridge) ? std::next(inverses_.begin()) : inverses_.begin());
  }
  return inverses_[{curvature, ridge}];
}

at::Tensor Gram::factor(double curvature, const at::Tensor& ridge) const {
  at::Tensor M = gram_ * curvature;
  M.diagonal().add_(1e-6 * M.diagonal().mean().item<double>());  // definite, however small the ridge
  const at::Tensor of_ridge = ridge.dim() == 0 ? M.diagonal() : M.diagonal().narrow(0, 0, ridge.size(0));
  of_ridge.add_(ridge.to(at::kDouble));
  if (bias_) M.diagonal()[-1].add_(1e-3 * curvature);
  return at::cholesky_inverse(at::linalg_cholesky(M)).to(dtype_);
}

double Gram::mean_square() const { return gram_.diagonal().narrow(0, 0, gram_.size(0) - (bias_ ? 1 : 0)).mean().item<double>(); }

double even_odds_curvature(const Loss& loss, int64_t classes) {
  if (!loss.classifies()) return 1.0;
  const auto C = static_cast<double>(loss.kind() == Loss::Kind::kSoftmax ? classes : 2);
  return 1.3 * (1 - 1 / C) / C;
}

Problem::Preconditioner Gram::inverse(int64_t classes, double curvature, double ridge) const {
  // Where a factorisation takes as long as tens of passes, one must serve for many x.
  const bool dear = gram_.size(0) > 100;
  return preconditioner(factor(power_of_two(curvature), dear && ridge > 0 ? power_of_two(ridge) : ridge), classes);
}

Problem::Preconditioner Gram::inverse(int64_t classes, double curvature, const at::Tensor& ridge) const {
  return preconditioner(factor(curvature, ridge), classes);
}

Problem::Preconditioner Gram::preconditioner(const at::Tensor& inverse, int64_t classes) const {
  const int64_t d = inverse.size(0) - (bias_ ? 1 : 0);
  return [inverse, classes, d, bias = bias_](const at::Tensor& v) {
    const at::Tensor W = v.narrow(0, 0, classes * d).view({classes, d});
    if (!bias) return W.mm(inverse).reshape({-1});
    const at::Tensor R = at::cat({W, v.narrow(0, classes * d, classes).unsqueeze(1)}, 1).mm(inverse);
    return at::cat({R.narrow(1, 0, d).reshape({-1}), R.select(1, d)});
  };
}

}  // namespace bilevel
