// With D the ridge of a layer as a matrix, B the right-hand side, and D^−½ ≈ u vᵀ for a part of each row and column,
//
//   Q = D^−½ ∘ (I + diag(u) L diag(u) ⊗ diag(v) R diag(v) / tr L)⁻¹ (D^−½ ∘ B),
//
// and with the eigenvalues l, m and eigenvectors of the two factors, (I + L' ⊗ R')⁻¹ X = U ((Uᵀ X V) / (1 + l mᵀ)) Vᵀ.
#include "bilevel/linear/kronecker_inverse.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <limits>
#include <string>
#include <utility>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

// Σ M Mᵀ and Σ Mᵀ M over M [r, out, in].
std::pair<at::Tensor, at::Tensor> partial_traces(const at::Tensor& M) {
  // M = g aᵀ: the longest row gives a's direction, and that g. Rounding of the scores leaves less than this beside them.
  constexpr double kRounding = 1e-12;
  const at::Tensor rows = M.square().sum(2), all = rows.sum();
  const at::Tensor longest = M.gather(1, rows.argmax(1).view({-1, 1, 1}).expand({-1, 1, M.size(2)}));
  at::Tensor g = M.bmm(longest.transpose(1, 2)).squeeze(2);
  g = g / g.norm(2, {1}, /*keepdim=*/true).clamp_min(std::numeric_limits<double>::min());
  const at::Tensor a = g.unsqueeze(1).bmm(M).squeeze(1);
  if ((a.square().sum() >= (1 - kRounding) * all).item<bool>()) {
    const at::Tensor scaled = g * a.norm(2, {1}, /*keepdim=*/true);
    return {scaled.t().mm(scaled), a.t().mm(a)};
  }
  const at::Tensor by_row = M.transpose(0, 1).flatten(1), by_column = M.flatten(0, 1);
  return {by_row.mm(by_row.t()), by_column.t().mm(by_column)};
}

std::string stem_of(const std::string& name) {
  const size_t dot = name.rfind('.');
  return dot == std::string::npos ? "" : name.substr(0, dot);
}

}  // namespace

// A bias follows its weight, has one element for each of its rows, and the same name but for what comes after the last dot.
std::vector<KroneckerInverse::Layer> KroneckerInverse::layers_of(const Layout& layout) {
  std::vector<Layer> layers;
  const std::vector<Part>& parts = layout.parts();
  for (size_t i = 0; i < parts.size(); ++i) {
    const Part& part = parts[i];
    if (part.size == 0) continue;
    Layer layer{.offset = part.offset, .size = part.size, .rows = part.shape.size() >= 2 ? part.shape.front() : 0};
    if (layer.rows > 0 && i + 1 < parts.size()) {
      const Part& next = parts[i + 1];
      layer.bias = next.shape == std::vector<int64_t>{layer.rows} && stem_of(next.name) == stem_of(part.name);
      if (layer.bias) layer.size += next.size, ++i;
    }
    layers.push_back(layer);
  }
  return layers;
}

at::Tensor KroneckerInverse::Layer::matrices(const at::Tensor& flat) const {
  const int64_t k = flat.size(0), of_weight = size - (bias ? rows : 0);
  const at::Tensor weight = flat.narrow(1, offset, of_weight).reshape({k, rows, -1});
  return bias ? at::cat({weight, flat.narrow(1, offset + of_weight, rows).unsqueeze(2)}, 2) : weight;
}

at::Tensor KroneckerInverse::Layer::flat(const at::Tensor& matrix) const {
  if (!bias) return matrix.flatten();
  const int64_t columns = matrix.size(1) - 1;
  return at::cat({matrix.narrow(1, 0, columns).reshape({-1}), matrix.select(1, columns)});
}

KroneckerInverse::KroneckerInverse(double beta, const Layout& layout, const std::vector<at::Tensor>& state)
    : beta_(beta), d_(layout.size()), layers_(layers_of(layout)) {
  require(beta > 0 && beta < 1, fmt::format("KroneckerInverse: beta should lie between 0 and 1, both excluded, got {}.", beta));
  size_t i = 0;
  for (const Layer& layer : layers_) {
    const int64_t columns = layer.rows > 0 ? layer.size / layer.rows : 0;
    const auto fits = [&](int64_t extent, int64_t dims) {
      const bool yes = i < state.size() && state[i].dim() == dims && state[i].size(0) == extent;
      ++i;
      return yes;
    };
    if (layer.rows > 0 ? !(fits(layer.rows, 2) && fits(columns, 2)) : !fits(layer.size, 1)) return;
  }
  if (i != state.size()) return;
  means_ = state;
  first_ = -1;
}

void KroneckerInverse::take(const at::Tensor& S) {
  require(S.dim() == 2 && S.size(0) > 0 && S.size(1) == d_,
          fmt::format("KroneckerInverse::take: blocks should have shape [r, {}], got {} dimensions.", d_, S.dim()));
  std::vector<at::Tensor> here;
  for (const Layer& layer : layers_) {
    if (layer.rows == 0) {
      here.push_back(S.narrow(1, layer.offset, layer.size).to(at::kDouble).square().sum(0));
      continue;
    }
    auto [L, R] = partial_traces(layer.matrices(S).to(at::kDouble));
    here.push_back(std::move(L));
    here.push_back(std::move(R));
  }
  if (first_ >= 0) ++first_;
  const double share = first_ >= 0 ? 1.0 / static_cast<double>(first_) : 1 - beta_;
  if (means_.empty()) {
    means_ = std::move(here);
  } else {
    for (size_t i = 0; i < means_.size(); ++i) means_[i] = at::lerp(means_[i], here[i], share);
  }
}

bool KroneckerInverse::settle(const at::Tensor& ridge) {
  require(ridge.dim() == 1 && ridge.size(0) == d_,
          fmt::format("KroneckerInverse::settle: the ridge should have {} elements, got {}.", d_, ridge.numel()));
  bool finite = true;
  for (const at::Tensor& mean : means_) finite = finite && mean.isfinite().all().item<bool>();
  if (!finite) means_.clear();
  first_ = means_.empty() ? 0 : -1;
  return finite;
}

at::Tensor KroneckerInverse::solve(const at::Tensor& b, const at::Tensor& ridge) const {
  require(first_ == -1, "KroneckerInverse::solve: no block was settled yet.");
  const at::Tensor B = b.to(at::kDouble), D = ridge.to(at::kDouble);
  std::vector<at::Tensor> q;
  auto mean = means_.begin();
  for (const Layer& layer : layers_) {
    if (layer.rows == 0) {
      q.push_back(B.narrow(0, layer.offset, layer.size) / (*mean++ + D.narrow(0, layer.offset, layer.size)));
      continue;
    }
    const at::Tensor &L = *mean++, &R = *mean++;
    const at::Tensor logs = -0.5 * layer.matrices(D.unsqueeze(0)).squeeze(0).log(), scale = logs.exp();
    const at::Tensor u = logs.mean(1).exp(), v = (logs.mean(0) - logs.mean()).exp();
    const auto [l, U] = at::linalg_eigh(L * u * u.unsqueeze(1) / L.trace().clamp_min(std::numeric_limits<double>::min()));
    const auto [m, V] = at::linalg_eigh(R * v * v.unsqueeze(1));
    const at::Tensor X = U.t().mm(scale * layer.matrices(B.unsqueeze(0)).squeeze(0)).mm(V);
    q.push_back(layer.flat(scale * U.mm(X / (1 + at::outer(l.clamp_min(0), m.clamp_min(0)))).mm(V.t())));
  }
  return at::cat(q).to(b.scalar_type());
}

}  // namespace bilevel
