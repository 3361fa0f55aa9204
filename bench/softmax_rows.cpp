#include "bench/softmax_rows.h"

#include <limits>

#include <ATen/ATen.h>

#include "bilevel/core/stream.h"

namespace bilevel {
namespace {

constexpr double kFinal = 1e-3, kRough = 3e-3;  // as in tasks/reweight.cpp
constexpr double kRidges[] = {1e-3, 3e-3, 1e-2, 3e-2};
constexpr int64_t kGroups = 10, kFolds = 5;

TrainerOptions softmax(const ReweightData& data, uint64_t seed) {
  TrainerOptions options;
  options.outputs = std::max(data.noisy.classes(), data.trusted.classes());
  options.seed = seed;
  return options;
}

}  // namespace

SoftmaxRows::SoftmaxRows(const ReweightData& data, uint64_t seed)
    : data_(data),
      seed_(seed),
      n_(data.noisy.size()),
      m_(data.trusted.size()),
      trainer_(softmax(data, seed),
               {at::cat({data.noisy.features, data.trusted.features}), at::cat({data.noisy.labels, data.trusted.labels})}) {
  // The folds of tasks/reweight.cpp: stratified by class, from the same stream.
  const at::Tensor shuffled = Stream(seed, "groups of the trusted").at(0).permutation(m_);
  const at::Tensor order =
      shuffled.index_select(0, std::get<1>(data.trusted.labels.index_select(0, shuffled).sort(/*stable=*/true, 0, false)));
  const at::Tensor group_of = at::empty({m_}, at::kLong).index_copy_(0, order, at::arange(m_).remainder(kGroups));
  for (int64_t k = 0; k < kFolds; ++k) folds_.push_back((group_of.remainder(kFolds) == k).nonzero().squeeze(1));
}

at::Tensor SoftmaxRows::ones() const { return at::ones({n_}, data_.noisy.features.options()); }

at::Tensor SoftmaxRows::with_trusted(const at::Tensor& weights, int64_t without_fold) const {
  const at::Tensor trusted = at::ones({m_}, weights.options());
  if (without_fold >= 0) trusted.index_fill_(0, folds_[static_cast<size_t>(without_fold)], 0);
  return at::cat({weights, trusted});
}

SoftmaxRows::Row SoftmaxRows::train(const at::Tensor& weights) {
  const at::NoGradGuard no_grad;
  Row best;
  best.held_back_loss = std::numeric_limits<double>::infinity();
  for (const double ridge : kRidges) {
    Row row;
    row.ridge = ridge;
    row.y = start_ = trainer_.fit(with_trusted(weights), ridge, start_, kRough).y;
    for (int64_t k = 0; k < kFolds; ++k) {
      const at::Tensor& fold = folds_[static_cast<size_t>(k)];
      const at::Tensor y = trainer_.fit(with_trusted(weights, k), ridge, row.y, kRough).y;
      const at::Tensor z = trainer_.logits(y, data_.trusted.features.index_select(0, fold));
      const at::Tensor labels = data_.trusted.labels.index_select(0, fold);
      row.held_back_loss +=
          (z.logsumexp(0) - z.gather(0, labels.unsqueeze(0)).squeeze(0)).sum().item<double>() / static_cast<double>(m_);
      row.held_back_accuracy += (z.argmax(0) == labels).sum().item<double>() / static_cast<double>(m_);
    }
    if (row.held_back_loss < best.held_back_loss) best = row;
  }
  const Trainer::Fit fit = trainer_.fit(with_trusted(weights), best.ridge, best.y, kFinal);
  best.y = fit.y;
  best.stationarity = fit.stationarity;
  best.accuracy =
      (trainer_.logits(fit.y, data_.test.features).argmax(0) == data_.test.labels).to(at::kDouble).mean().item<double>();
  return best;
}

at::Tensor SoftmaxRows::out_of_fold(const at::Tensor& weights, double ridge, int64_t folds) {
  const at::NoGradGuard no_grad;
  const at::Tensor fold = Stream(seed_, "folds of the noisy").at(0).permutation(n_).remainder(folds);
  at::Tensor P = at::empty({trainer_.options().outputs, n_}, weights.options());
  for (int64_t k = 0; k < folds; ++k) {
    start_ = trainer_.fit(with_trusted(weights.masked_fill(fold == k, 0)), ridge, start_, kRough).y;
    const at::Tensor rows = (fold == k).nonzero().squeeze(1);
    P.index_copy_(1, rows, trainer_.logits(start_, data_.noisy.features.index_select(0, rows)).softmax(0));
  }
  return P;
}

at::Tensor SoftmaxRows::probabilities(const at::Tensor& y) const { return trainer_.logits(y, data_.noisy.features).softmax(0); }

at::Tensor mean_of_source(const at::Tensor& values, const Dataset& noisy) {
  const auto sources = static_cast<int64_t>(noisy.source_names.size());
  const auto sum = [&](const at::Tensor& v) { return at::zeros({sources}, v.options()).index_add(0, noisy.sources, v); };
  return (sum(values) / sum(at::ones_like(values))).index_select(0, noisy.sources);
}

}  // namespace bilevel
