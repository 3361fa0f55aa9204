#include "bilevel/linear/inverse_tracker.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

// L with L Lᵀ = A; undefined where there is none.
at::Tensor lower_factor(const at::Tensor& A) {
  auto [L, info] = at::linalg_cholesky_ex(A);
  return info.item<int64_t>() == 0 && L.isfinite().all().item<bool>() ? L : at::Tensor{};
}

// Rounding would let the halves drift apart. Row by row, as a checkpoint gives it back: another order gives other bits.
at::Tensor symmetric(const at::Tensor& P) { return ((P + P.t()) / 2).contiguous(); }

// (c A + UᵀU)⁻¹, given P = A⁻¹, U P and U P Uᵀ; undefined where it is not positive definite.
at::Tensor updated(const at::Tensor& P, const at::Tensor& UP, at::Tensor UPU, double c) {
  UPU.diagonal().add_(c);
  const at::Tensor L = lower_factor(UPU);
  if (!L.defined()) return {};
  const at::Tensor V = at::linalg_solve_triangular(L, UP, /*upper=*/false);
  return at::addmm(P, V.t(), V, 1 / c, -1 / c);
}

void require_block(const at::Tensor& S, const char* caller) {
  require(S.dim() == 2 && S.size(0) > 0, fmt::format("{}: blocks should have shape [r, d], got {} dimensions.", caller, S.dim()));
}

void require_ridge(const at::Tensor& ridge, int64_t d, const char* caller) {
  require(ridge.dim() == 1 && ridge.size(0) == d,
          fmt::format("{}: the blocks have {} columns, and the ridge has {} elements.", caller, d, ridge.numel()));
}

}  // namespace

bool InverseTracker::add(const std::vector<at::Tensor>& blocks, const at::Tensor& ridge) {
  for (const at::Tensor& S : blocks) take(S);
  return settle(ridge);
}

WindowedInverse::WindowedInverse(int64_t rows, int64_t block_rows, const std::vector<at::Tensor>& state)
    : rows_(rows), block_rows_(block_rows) {
  require(rows >= 1 && block_rows >= 1,
          fmt::format("WindowedInverse: rows = {} and block_rows = {} should be at least 1.", rows, block_rows));
  if (!state.empty() && state.front().size(0) % block_rows == 0) S_ = state.front();
}

void WindowedInverse::take(const at::Tensor& S) {
  require_block(S, "WindowedInverse::take");
  require(S.size(0) == block_rows_,
          fmt::format("WindowedInverse::take: blocks should have {} rows, got {}.", block_rows_, S.size(0)));
  fresh_.push_back(S);
}

bool WindowedInverse::settle(const at::Tensor& ridge) {
  const int64_t most = std::max<int64_t>(1, rows_ / block_rows_), fresh = static_cast<int64_t>(fresh_.size());
  for (const at::Tensor& S : fresh_) require_ridge(ridge, S.size(1), "WindowedInverse::settle");
  std::vector<at::Tensor> kept;
  if (S_.defined() && fresh < most) {
    const int64_t old = std::min(S_.size(0), (most - fresh) * block_rows_);
    kept.push_back(S_.narrow(0, S_.size(0) - old, old));
  }
  kept.insert(kept.end(), fresh_.end() - std::min(fresh, most), fresh_.end());
  if (!kept.empty()) S_ = at::cat(kept);
  fresh_.clear();
  return true;
}

// With B = S δ^−½ and b' = δ^−½ b:  q = δ^−½ (I + BᵀB)⁻¹ b',  (I + BᵀB)⁻¹ = I − Bᵀ (I + B Bᵀ)⁻¹ B.
at::Tensor WindowedInverse::solve(const at::Tensor& b, const at::Tensor& ridge) const {
  require(S_.defined(), "WindowedInverse::solve: no block was added yet.");
  const double blocks = static_cast<double>(S_.size(0)) / static_cast<double>(block_rows_);
  const at::Tensor by_root = ridge.rsqrt(), B = S_ * (by_root / std::sqrt(blocks)), scaled = by_root * b;
  const bool form = B.size(1) <= B.size(0);
  at::Tensor A = form ? B.t().mm(B) : B.mm(B.t());
  A.diagonal().add_(1);
  const at::Tensor L = lower_factor(A);
  if (!L.defined()) return at::full_like(b, std::numeric_limits<double>::quiet_NaN());
  const auto by_A = [&L](const at::Tensor& v) { return at::cholesky_solve(v.unsqueeze(1), L).squeeze(1); };
  return by_root * (form ? by_A(scaled) : scaled - B.t().mv(by_A(B.mv(scaled))));
}

SmoothedInverse::SmoothedInverse(double beta, const std::vector<at::Tensor>& state) : beta_(beta) {
  require(beta > 0 && beta < 1, fmt::format("SmoothedInverse: beta should lie between 0 and 1, both excluded, got {}.", beta));
  if (state.empty()) return;
  P_ = state[0].clone();
  next_ = state[1].item<int64_t>();
}

std::vector<at::Tensor> SmoothedInverse::state() const {
  return P_.defined() ? std::vector<at::Tensor>{P_.clone(), at::scalar_tensor(next_, at::kLong)} : std::vector<at::Tensor>{};
}

void SmoothedInverse::take(const at::Tensor& S) {
  require_block(S, "SmoothedInverse::take");
  if (!P_.defined()) {
    first_.push_back(S);
    return;
  }
  require(S.size(1) == P_.size(0),
          fmt::format("SmoothedInverse::take: blocks should have {} columns, got {}.", P_.size(0), S.size(1)));
  block_rows_.push_back(S.size(0));
  if (!positive_) return;
  const at::Tensor U = std::sqrt(1 - beta_) * S.to(at::kDouble), UP = U.mm(P_);
  const at::Tensor P = updated(P_, UP, UP.mm(U.t()), beta_);
  positive_ = P.defined();
  if (positive_) P_ = P;
}

bool SmoothedInverse::settle(const at::Tensor& ridge) {
  if (P_.defined()) {
    require_ridge(ridge, P_.size(0), "SmoothedInverse::settle");
    positive_ = positive_ && bring_in(ridge);
  } else if (!first_.empty()) {
    require_ridge(ridge, first_.front().size(1), "SmoothedInverse::settle");
    positive_ = start(ridge);
  }
  const bool positive = positive_;
  if (!positive) P_ = at::Tensor();
  first_.clear();
  block_rows_.clear();
  positive_ = true;
  return positive;
}

bool SmoothedInverse::start(const at::Tensor& ridge) {
  const at::Tensor S = at::cat(first_).to(at::kDouble);
  at::Tensor A = S.t().mm(S) / static_cast<double>(first_.size());
  A.diagonal().add_(ridge);
  const at::Tensor L = lower_factor(A);
  if (L.defined()) P_ = symmetric(at::cholesky_inverse(L));
  return L.defined();
}

// Of K blocks, block k's pseudo-scores have the factor √((1 − β) β^(K−k)).
bool SmoothedInverse::bring_in(const at::Tensor& ridge) {
  if (block_rows_.empty()) return true;
  const int64_t d = P_.size(0);
  std::vector<at::Tensor> due, size;
  auto later = static_cast<double>(block_rows_.size());
  for (const int64_t rows : block_rows_) {
    const double of_block = (1 - beta_) * std::pow(beta_, --later);
    const int64_t r = std::min(rows, d);
    due.push_back((next_ + at::arange(r, at::kLong)).remainder(d));
    next_ = (next_ + r) % d;
    size.push_back(at::full({r}, of_block * static_cast<double>(d) / static_cast<double>(r), at::kDouble));
  }
  const at::Tensor j = at::cat(due).to(P_.device());
  const at::Tensor size_of = (at::cat(size).to(P_.device()) * ridge.to(at::kDouble).index_select(0, j)).sqrt();
  const at::Tensor UP = P_.index_select(0, j) * size_of.unsqueeze(1);
  const at::Tensor P = updated(P_, UP, UP.index_select(1, j) * size_of, 1.0);
  if (P.defined()) P_ = symmetric(P);
  return P.defined();
}

at::Tensor SmoothedInverse::solve(const at::Tensor& b, const at::Tensor& /*ridge*/) const {
  require(P_.defined(), "SmoothedInverse::solve: no block was added yet.");
  return P_.mv(b.to(at::kDouble)).to(b.scalar_type());
}

}  // namespace bilevel
