#include "bilevel/inner/step_size.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "bilevel/core/stream.h"
#include "bilevel/core/vectors.h"

// Lanczos with full reorthogonalisation, from a random unit vector v₁:
//
//   w = H vⱼ − βⱼ₋₁ vⱼ₋₁,   αⱼ = ⟨vⱼ, w⟩,   w ← w − αⱼ vⱼ,   βⱼ = ‖w‖,   vⱼ₊₁ = w/βⱼ
//
// The eigenvalues θ of the tridiagonal matrix of α and β with eigenvectors s lie within βⱼ|sⱼ| of eigenvalues of H.

namespace bilevel {
namespace {

struct Ritz {
  double value, residual;
};

// The pair of the largest |θ|.
Ritz extreme_ritz(const std::vector<double>& alpha, const std::vector<double>& beta) {
  const auto k = static_cast<int64_t>(alpha.size());
  at::Tensor T = at::zeros({k, k}, at::kDouble);
  auto entries = T.accessor<double, 2>();
  for (int64_t j = 0; j < k; ++j) {
    entries[j][j] = alpha[static_cast<size_t>(j)];
    if (j + 1 < k) entries[j][j + 1] = entries[j + 1][j] = beta[static_cast<size_t>(j)];
  }
  const auto [theta, S] = at::linalg_eigh(T);
  const int64_t top = theta.abs().argmax().item<int64_t>();
  return {std::abs(theta[top].item<double>()), beta.back() * std::abs(S[k - 1][top].item<double>())};
}

}  // namespace

double largest_curvature(Linearization& linearization, const CurvatureOptions& options) {
  const at::NoGradGuard no_grad;
  const at::Tensor r = linearization.residual();
  at::Tensor v = Stream(options.seed, "curvature").at(0).normal(r.sizes(), r.scalar_type()).to(r.device());
  v = v / v.norm();
  const double rounding = std::numeric_limits<float>::epsilon();
  const int64_t most = std::min<int64_t>(options.products, r.numel());
  std::vector<double> alpha, beta;
  std::vector<at::Tensor> basis;
  Ritz ritz{0, 0};
  for (int64_t j = 0; j < most; ++j) {
    basis.push_back(v);
    at::Tensor w = linearization.jvp_y(v);
    alpha.push_back(dot_of(v, w));
    const at::Tensor V = at::stack(basis);
    for (int pass = 0; pass < 2; ++pass) w = w - at::mv(V.t(), at::mv(V, w));  // twice is enough (Parlett)
    beta.push_back(norm_of(w));
    if (!std::isfinite(alpha.back()) || !std::isfinite(beta.back())) return std::numeric_limits<double>::quiet_NaN();
    ritz = extreme_ritz(alpha, beta);
    if (beta.back() <= rounding * ritz.value) return ritz.value;  // the space is invariant
    // Two products are too few to believe a small residual: the vector may lie near another eigenvector.
    if (j >= 4 && ritz.residual <= options.tolerance * ritz.value) break;
    v = w / beta.back();
  }
  return ritz.value + ritz.residual;
}

}  // namespace bilevel
