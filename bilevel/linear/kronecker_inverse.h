#pragma once
#include <cstdint>
#include <vector>

#include "bilevel/core/layout.h"
#include "bilevel/linear/inverse_tracker.h"

namespace bilevel {

/// A block for each layer, and in it the Kronecker product of two matrices (K-FAC, Martens & Grosse 2015). With a score written
/// as a matrix M [out, in + 1], the bias its last column, the block of that layer is
///
///     F ≈ L ⊗ R / tr L,   L = mean of Σ M Mᵀ [out, out],   R = mean of Σ Mᵀ M [in + 1, in + 1]
///
/// Of a dense layer M = g aᵀ, with g the gradient at its outputs and a its inputs: then L = mean of ‖a‖² g gᵀ and R = mean of
/// ‖g‖² a aᵀ, which are K-FAC's two factors up to these weights, and the block is F itself where a and g are independent. The two
/// are partial traces of F whatever the layer does with its weight, so that convolutions and shared weights need nothing of their
/// own. Parts that are neither a matrix (of two dimensions or more) nor the bias after one are taken element by element.
///
/// The mean is that over all blocks up to the first `settle`, then smoothed, L ← β L + (1 − β) Σ M Mᵀ. The ridge is that of the
/// solve, and exact where it is a product of a number for each row and one for each column, such as one number for the weights
/// and another for the bias; else its nearest product is inverted with F, in logarithms. In double. O(r out in) for a block where
/// each M is of rank one, else O(r out in (out + in)), and O(out³ + in³) for a solve.
class KroneckerInverse final : public InverseTracker {
 public:
  /// A state of another layout is dropped.
  KroneckerInverse(double beta, const Layout& layout, const std::vector<at::Tensor>& state = {});
  void take(const at::Tensor& S) override;
  bool settle(const at::Tensor& ridge) override;
  at::Tensor solve(const at::Tensor& b, const at::Tensor& ridge) const override;
  std::vector<at::Tensor> state() const override { return means_; }

 private:
  struct Layer {
    int64_t offset = 0, size = 0;  // of weight and bias in y
    int64_t rows = 0;              // out; 0: element by element
    bool bias = false;
    at::Tensor matrices(const at::Tensor& flat) const;  // [k, d] → [k, out, in + 1]
    at::Tensor flat(const at::Tensor& matrix) const;    // [out, in + 1] → [size]
  };
  static std::vector<Layer> layers_of(const Layout& layout);
  double beta_;
  int64_t d_;
  std::vector<Layer> layers_;
  std::vector<at::Tensor> means_;  // for each layer L and R, or squares [size]; empty: nothing yet
  int64_t first_ = 0;              // blocks before the first settle; −1: after it
};

}  // namespace bilevel
