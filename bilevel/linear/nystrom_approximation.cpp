// Frangella, Tropp & Udell, SIAM J. Matrix Anal. Appl. 44 (2023), Algorithm 2.1, with Ω orthonormal. In rows, so [k, d]:
//
//   Y = Ω A,   ν = ε ‖Y‖_F,   Y_ν = Y + ν Ω,   Ω Y_νᵀ = C Cᵀ (Cholesky),   B = C⁻¹ Y_ν = W Σ Uᵀ (SVD),   Λ = max(0, Σ² − ν)
//
// The shift ν lets the Cholesky decomposition succeed on a semidefinite A. Where it fails A is indefinite, and the eigenvectors
// V of ΩAΩᵀ with eigenvalues θ > 0 stand for C:  B = θ^{−1/2} Vᵀ Y.
#include "bilevel/linear/nystrom_approximation.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>

#include "bilevel/core/stream.h"
#include "bilevel/linear/system.h"

namespace bilevel {
namespace {

at::Tensor directions(int64_t d, int64_t k, bool coordinates, uint64_t seed) {
  if (k == d) return at::eye(d, at::kDouble);
  Draw draw = Stream(seed, "nystrom").at(0);
  if (coordinates) return at::eye(d, at::kDouble).index_select(0, draw.permutation(d).narrow(0, 0, k));
  return std::get<0>(at::linalg_qr(draw.normal({d, k}))).t().contiguous();
}

}  // namespace

LowRank nystrom_approximation(const Operator& A, int64_t rank, bool coordinates, uint64_t seed,
                              const at::TensorOptions& options) {
  const int64_t d = A.dim, k = std::min(rank, d);
  // In the dtype of the products first, so that Y = Ω A of the Ω that is used.
  const at::Tensor rows = directions(d, k, coordinates, seed).to(options);
  const at::Tensor Omega = rows.to(at::kDouble);
  const at::Tensor Y = products(A, rows).to(at::kDouble);

  LowRank found;
  found.U = at::zeros({d, 0}, Y.options());
  found.values = at::zeros({0}, Y.options());
  found.finite = Y.isfinite().all().item<bool>();
  if (!found.finite) return found;

  const double epsilon =
      options.dtype() == at::kDouble ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
  const double nu = epsilon * at::linalg_vector_norm(Y).item<double>();
  const at::Tensor G = Omega.mm(Y.t());
  const at::Tensor core = (G + G.t()) / 2;
  found.lowest = at::linalg_eigvalsh(core).min().item<double>();
  found.indefinite = found.lowest < -10 * nu;

  at::Tensor B;
  double shift = nu;
  const auto [C, info] = at::linalg_cholesky_ex(core + nu * at::eye(k, core.options()));
  if (!found.indefinite && info.item<int64_t>() == 0) {
    B = at::linalg_solve_triangular(C, Y + nu * Omega, /*upper=*/false);
  } else {
    const auto [theta, V] = at::linalg_eigh(core);
    const at::Tensor positive = (theta > 10 * nu).nonzero().squeeze(1);
    B = V.index_select(1, positive).t().mm(Y) / theta.index_select(0, positive).sqrt().unsqueeze(1);
    shift = 0;
  }
  if (B.size(0) == 0 || nu == 0) return found;
  const auto [W, sigma, Vh] = at::linalg_svd(B, /*full_matrices=*/false);
  const at::Tensor values = (sigma.square() - shift).clamp_min(0);
  const int64_t kept = (values > 10 * nu).sum().item<int64_t>();
  found.values = values.narrow(0, 0, kept);
  found.U = Vh.narrow(0, 0, kept).t();
  return found;
}

}  // namespace bilevel
