#pragma once
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

namespace bilevel {

/// q = (diag δ + F)⁻¹ b for an F that is known only by outer products which come a few at a time: blocks S [r, d] with E[SᵀS] =
/// F. δ [d] is positive.
///
/// The ridge δ is in no outer product, and a mean that forgets would forget it; each tracker has its own way to keep it. `state`
/// goes into a checkpoint, and a tracker made from it goes on with the same bits.
class InverseTracker {
 public:
  virtual ~InverseTracker() = default;
  /// Takes a block, the oldest first. It works on it at once where it can do so without the ridge.
  virtual void take(const at::Tensor& S) = 0;
  /// After the blocks of one solve. False where the matrix is not positive definite to rounding, or not finite; the tracker is
  /// then empty again.
  virtual bool settle(const at::Tensor& ridge) = 0;
  /// Of what is settled, at least one block; b is [d].
  virtual at::Tensor solve(const at::Tensor& b, const at::Tensor& ridge) const = 0;
  virtual std::vector<at::Tensor> state() const = 0;

  /// Takes blocks, and settles.
  bool add(const std::vector<at::Tensor>& blocks, const at::Tensor& ridge);
};

/// The mean over the last blocks, as many as make up `rows` rows, at least one (Woodbury's identity):
///
///     q = δ⁻¹ (b − Sᵀ (I + S δ⁻¹ Sᵀ)⁻¹ S δ⁻¹ b)
///
/// Memory [rows, d], and O(rows² d) for a solve; where d is smaller the matrix is formed, in O(rows d²). The ridge is that of the
/// solve, which all of the work waits for.
class WindowedInverse final : public InverseTracker {
 public:
  /// Blocks of other than `block_rows` rows are not taken; a state of such is dropped.
  WindowedInverse(int64_t rows, int64_t block_rows, const std::vector<at::Tensor>& state = {});
  void take(const at::Tensor& S) override;
  bool settle(const at::Tensor& ridge) override;
  at::Tensor solve(const at::Tensor& b, const at::Tensor& ridge) const override;
  std::vector<at::Tensor> state() const override {
    return S_.defined() ? std::vector<at::Tensor>{S_} : std::vector<at::Tensor>{};
  }

 private:
  int64_t rows_, block_rows_;
  std::vector<at::Tensor> fresh_;
  at::Tensor S_;  // [rows, d], the oldest first
};

/// The smoothed mean A ← β A + (1 − β)(SᵀS + ridge), with the inverse P = A⁻¹ [d, d] itself kept (Sherman, Morrison & Woodbury):
///
///     P ← (P − P Uᵀ (β I + U P Uᵀ)⁻¹ U P) / β,    U = √(1 − β) S
///
/// The ridge comes in when a solve is settled, as pseudo-scores √(δ_j d/r) e_j along as many coordinates as each block has rows,
/// the next ones each time, with the weight of that block, so that their mean is diag δ. The blocks before the first `settle` are
/// inverted as a whole, so that A is right from the start. In double whatever the dtype of the blocks, O(r d²) for a block, and a
/// product for a solve.
class SmoothedInverse final : public InverseTracker {
 public:
  explicit SmoothedInverse(double beta, const std::vector<at::Tensor>& state = {});
  void take(const at::Tensor& S) override;
  bool settle(const at::Tensor& ridge) override;
  at::Tensor solve(const at::Tensor& b, const at::Tensor& ridge) const override;
  std::vector<at::Tensor> state() const override;

 private:
  bool start(const at::Tensor& ridge);
  bool bring_in(const at::Tensor& ridge);
  double beta_;
  at::Tensor P_;                     // [d, d], double
  int64_t next_ = 0;                 // the coordinate whose ridge is due
  std::vector<at::Tensor> first_;    // blocks that wait for the first ridge
  std::vector<int64_t> block_rows_;  // of the blocks whose ridge is due
  bool positive_ = true;
};

}  // namespace bilevel
