#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <optional>
#include <vector>

#include "bilevel/problem/batch.h"
#include "bilevel/problem/loss.h"

namespace bilevel {

/// t_j(x) = c_j φ(x[first + index_j]): what the elements of one part of x stand for, spread over the samples or over y.
struct SpreadMap {
  enum class Phi { kIdentity, kExp, kSigmoid, kSoftplus };

  int64_t first = 0;  // of the part in x
  int64_t size = 1;   // of the part
  Phi phi = Phi::kIdentity;
  at::Tensor index = {};   // int64 [m], below size; undefined: j itself, or one element for all where size is 1
  at::Tensor factor = {};  // c [m]; undefined: 1
};

/// A loss as that of a generalised linear model with a ridge, over the samples of a batch:
///
///     (1/n) Σ_i s_i(x) ℓ(W a_i + c, t_i) + ½ Σ_j λ_j(x) y_j²,   y = (W row by row, then c)
///
/// or as the sum of K such over the same samples, y the K models one after the other: a pass over the samples then serves all K,
/// as for the folds of a cross-validation.
///
/// A problem that offers its losses so (`Problem::inner_linear_form`) is differentiated by the native oracle.
struct LinearForm {
  /// ℓ(z, t): those of problem/loss.h, and Poisson's Σ_c (exp z_c − t_c z_c), t counts.
  enum class Link { kSquared, kLogistic, kSoftmax, kPoisson };
  static Link link_of(const Loss& loss) {
    switch (loss.kind()) {
      case Loss::Kind::kLogistic: return Link::kLogistic;
      case Loss::Kind::kSoftmax: return Link::kSoftmax;
      case Loss::Kind::kSquared: break;
    }
    return Link::kSquared;
  }

  at::Tensor features;  // a [n, d], of the dtype of x and y; dense, or CSR where most are zero
  at::Tensor targets;   // t as `Loss::targets` gives them: softmax int64 [1, n], logistic ±1 [1, n], else [C, n]
  Link link = Link::kSquared;
  int64_t outputs = 1;  // C, the rows of W
  bool bias = true;     // c is there
  int64_t models = 1;   // K
  /// s(x) of the batch's samples, [B] or of each model [K, B], differentiable; empty: 1.
  std::function<at::Tensor(const at::Tensor& x, const Batch& batch)> sample_weights = {};
  /// λ(x), a scalar or [dy], differentiable; empty: 0.
  std::function<at::Tensor(const at::Tensor& x)> ridge = {};
  /// What x alone adds to the loss, a differentiable scalar: a prior on x; empty: 0.
  std::function<at::Tensor(const at::Tensor& x)> prior = {};
  /// In place of these functions, where s and λ are no more than maps of single elements: they cost no graph. s is the product of
  /// its maps, over all samples, of one model.
  std::vector<SpreadMap> sample_weight_maps = {};
  std::optional<SpreadMap> ridge_map = std::nullopt;
};

}  // namespace bilevel
