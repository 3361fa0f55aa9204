#pragma once
#include <ATen/ATen.h>

#include <cmath>
#include <memory>
#include <vector>

#include "bilevel/core/stream.h"
#include "bilevel/linear/linear_solver.h"

namespace bilevel::test {

/// Q diag(eigenvalues) Qᵀ with a random rotation Q.
inline at::Tensor symmetric(const std::vector<double>& eigenvalues, uint64_t seed = 1) {
  const auto d = static_cast<int64_t>(eigenvalues.size());
  const at::Tensor Q = std::get<0>(at::linalg_qr(Stream(seed, "rotation").at(0).normal({d, d})));
  const at::Tensor M = Q.mul(at::tensor(eigenvalues, at::kDouble)).mm(Q.t());
  return (M + M.t()) / 2;
}

/// Eigenvalues spread evenly in the logarithm from `low` to `high`.
inline std::vector<double> spectrum(int64_t d, double low, double high) {
  std::vector<double> values;
  for (int64_t i = 0; i < d; ++i)
    values.push_back(low * std::pow(high / low, static_cast<double>(i) / static_cast<double>(d - 1)));
  return values;
}

inline at::Tensor vector(int64_t d, uint64_t seed = 2) { return Stream(seed, "vector").at(0).normal({d}); }

inline Operator product_with(const at::Tensor& M) {
  Operator A;
  A.dim = M.size(0);
  A.symmetric = at::equal(M, M.t());
  A.apply = [M](const at::Tensor& v) { return M.mv(v); };
  return A;
}

/// The same, counting the products.
inline Operator counted(const at::Tensor& M, int64_t& products) {
  Operator A = product_with(M);
  A.apply = [M, &products](const at::Tensor& v) {
    ++products;
    return M.mv(v);
  };
  return A;
}

/// A product that is NaN from the n-th on.
inline Operator breaking(const at::Tensor& M, int64_t n) {
  Operator A = product_with(M);
  A.apply = [M, n, done = std::make_shared<int64_t>(0)](const at::Tensor& v) {
    return ++*done >= n ? at::full_like(v, std::nan("")) : M.mv(v);
  };
  return A;
}

inline double length(const at::Tensor& v) { return at::linalg_vector_norm(v).item<double>(); }

/// ‖a − b‖ / ‖b‖
inline double distance(const at::Tensor& a, const at::Tensor& b) {
  return length(a.to(at::kDouble) - b.to(at::kDouble)) / length(b.to(at::kDouble));
}

/// An orthonormal basis [d, K] of span{v, M v, …, M^{K−1} v}.
inline at::Tensor krylov_basis(const at::Tensor& M, const at::Tensor& v, int64_t K) {
  std::vector<at::Tensor> basis;
  at::Tensor next = v / length(v);
  for (int64_t k = 0; k < K; ++k) {
    for (int repeat = 0; repeat < 2; ++repeat) {
      for (const auto& u : basis) next = next - u * u.dot(next);
    }
    basis.push_back(next / length(next));
    next = M.mv(basis.back());
  }
  return at::stack(basis, 1);
}

/// The point of the smallest residual in q0 + span{r0, M r0, …, M^{K−1} r0}: what minres and gmres are after K products.
inline at::Tensor smallest_residual(const at::Tensor& M, const at::Tensor& b, int64_t K, const at::Tensor& q0) {
  const at::Tensor r0 = b - M.mv(q0), V = krylov_basis(M, r0, K);
  return q0 + V.mv(std::get<0>(at::linalg_lstsq(M.mm(V), r0.unsqueeze(1))).squeeze(1));
}

}  // namespace bilevel::test
