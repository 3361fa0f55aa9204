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

void require_block(const at::Tensor& S, const at::Tensor& ridge, const char* caller) {
  require(S.dim() == 2 && S.size(0) > 0 && S.size(1) == ridge.size(0),
          fmt::format("{}: blocks should have shape [r, {}], got {} dimensions.", caller, ridge.size(0), S.dim()));
}

}  // namespace

WindowedInverse::WindowedInverse(int64_t rows, int64_t block_rows, const std::vector<at::Tensor>& state)
    : rows_(rows), block_rows_(block_rows) {
  require(rows >= 1 && block_rows >= 1,
          fmt::format("WindowedInverse: rows = {} and block_rows = {} should be at least 1.", rows, block_rows));
  if (!state.empty() && state.front().size(0) % block_rows == 0) S_ = state.front();
}

bool WindowedInverse::add(const std::vector<at::Tensor>& blocks, const at::Tensor& ridge) {
  const int64_t most = std::max<int64_t>(1, rows_ / block_rows_), fresh = static_cast<int64_t>(blocks.size());
  std::vector<at::Tensor> kept;
  if (S_.defined() && fresh < most) {
    const int64_t old = std::min(S_.size(0), (most - fresh) * block_rows_);
    kept.push_back(S_.narrow(0, S_.size(0) - old, old));
  }
  for (int64_t t = 0; t < fresh; ++t) {
    const at::Tensor& S = blocks[static_cast<size_t>(t)];
    require_block(S, ridge, "WindowedInverse::add");
    require(S.size(0) == block_rows_,
            fmt::format("WindowedInverse::add: blocks should have {} rows, got {}.", block_rows_, S.size(0)));
    if (t >= fresh - most) kept.push_back(S);
  }
  S_ = at::cat(kept);
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

bool SmoothedInverse::add(const std::vector<at::Tensor>& blocks, const at::Tensor& ridge) {
  for (const at::Tensor& S : blocks) require_block(S, ridge, "SmoothedInverse::add");
  const bool positive = P_.defined() ? update(blocks, ridge) : start(blocks, ridge);
  if (!positive) P_ = at::Tensor();
  return positive;
}

bool SmoothedInverse::start(const std::vector<at::Tensor>& blocks, const at::Tensor& ridge) {
  const at::Tensor S = at::cat(blocks).to(at::kDouble);
  at::Tensor A = S.t().mm(S) / static_cast<double>(blocks.size());
  A.diagonal().add_(ridge);
  const at::Tensor L = lower_factor(A);
  if (L.defined()) P_ = symmetric(at::cholesky_inverse(L));
  return L.defined();
}

// K blocks at once: A ← β^K A + UᵀU, where the rows of block k have the factor √((1 − β) β^(K−k)).
bool SmoothedInverse::update(const std::vector<at::Tensor>& blocks, const at::Tensor& ridge) {
  std::vector<at::Tensor> rows;
  double of_block = 1 - beta_, of_before = 1;
  for (auto block = blocks.rbegin(); block != blocks.rend(); ++block, of_block *= beta_, of_before *= beta_) {
    rows.push_back(std::sqrt(of_block) * block->to(at::kDouble));
  }
  // The ridge of the coordinates that are due, the first block's first.
  const int64_t d = P_.size(0);
  for (const at::Tensor& block : blocks) {
    of_block /= beta_;
    const int64_t r = std::min(block.size(0), d);
    const at::Tensor due = (next_ + at::arange(r, at::kLong)).remainder(d).to(P_.device());
    next_ = (next_ + r) % d;
    const at::Tensor share =
        ridge.to(at::kDouble).index_select(0, due) * (of_block * static_cast<double>(d) / static_cast<double>(r));
    rows.push_back(at::zeros({r, d}, P_.options()).scatter_(1, due.unsqueeze(1), share.sqrt().unsqueeze(1)));
  }
  const at::Tensor U = at::cat(rows), UP = U.mm(P_);
  at::Tensor inner = UP.mm(U.t());
  inner.diagonal().add_(of_before);
  const at::Tensor L = lower_factor(inner);
  if (!L.defined()) return false;
  const at::Tensor V = at::linalg_solve_triangular(L, UP, /*upper=*/false);
  P_ = symmetric(at::addmm(P_, V.t(), V, 1 / of_before, -1 / of_before));
  return true;
}

at::Tensor SmoothedInverse::solve(const at::Tensor& b, const at::Tensor& /*ridge*/) const {
  require(P_.defined(), "SmoothedInverse::solve: no block was added yet.");
  return P_.mv(b.to(at::kDouble)).to(b.scalar_type());
}

}  // namespace bilevel
