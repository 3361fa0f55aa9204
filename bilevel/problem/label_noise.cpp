#include "bilevel/problem/label_noise.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"

namespace bilevel {
namespace {

void add(std::vector<Labeller>& labellers, Draw& draw, std::string_view name, int count, double low, double high,
         NoiseKind kind) {
  const at::Tensor u = draw.uniform({count});
  for (int i = 0; i < count; ++i) {
    labellers.push_back({fmt::format("{} {}", name, i + 1), low + (high - low) * u[i].item<double>(), kind});
  }
}

}  // namespace

std::vector<Labeller> mixed_labellers(uint64_t seed) {
  Draw draw = Stream(seed, "labellers").at(0);
  std::vector<Labeller> labellers;
  add(labellers, draw, "careful", 6, 0.02, 0.10, NoiseKind::kRandom);
  add(labellers, draw, "careless", 7, 0.3, 0.7, NoiseKind::kRandom);
  add(labellers, draw, "confused", 7, 0.6, 0.9, NoiseKind::kLookAlike);
  return labellers;
}

std::vector<Labeller> swapping_labellers(uint64_t seed) {
  Draw draw = Stream(seed, "labellers").at(0);
  std::vector<Labeller> labellers;
  add(labellers, draw, "careful", 6, 0.02, 0.10, NoiseKind::kRandom);
  add(labellers, draw, "confused", 14, 0.8, 0.8, NoiseKind::kLookAlike);
  return labellers;
}

const std::vector<int64_t>& fashion_mnist_look_alikes() {
  static const std::vector<int64_t> kMap = {6, 3, 4, 1, 2, 7, 0, 5, 9, 7};
  return kMap;
}

const std::vector<int64_t>& digits_look_alikes() {
  static const std::vector<int64_t> kMap = {6, 7, 3, 8, 9, 6, 0, 1, 3, 4};
  return kMap;
}

std::vector<int64_t> next_class(int64_t classes) {
  std::vector<int64_t> map;
  for (int64_t k = 0; k < classes; ++k) map.push_back((k + 1) % classes);
  return map;
}

NoisyLabels simulate_labels(const at::Tensor& truth, const std::vector<Labeller>& labellers,
                            const std::vector<int64_t>& look_alikes, uint64_t seed) {
  const auto classes = static_cast<int64_t>(look_alikes.size());
  const auto S = static_cast<int64_t>(labellers.size());
  require(truth.dim() == 1 && truth.scalar_type() == at::kLong && truth.is_cpu(),
          "simulate_labels: truth should be int64 [n] on the CPU.");
  const int64_t n = truth.size(0);
  require(classes >= 2, fmt::format("simulate_labels: look_alikes has {} classes, and a wrong label needs two.", classes));
  require(S > 0 && n >= S, fmt::format("simulate_labels: {} samples cannot be given to {} labellers.", n, S));
  for (int64_t k = 0; k < classes; ++k) {
    const int64_t other = look_alikes[static_cast<size_t>(k)];
    require(other >= 0 && other < classes && other != k,
            fmt::format("simulate_labels: look_alikes takes class {} for {}.", k, other));
  }
  for (const Labeller& labeller : labellers) {
    require(
        labeller.error_rate >= 0 && labeller.error_rate <= 1,
        fmt::format("simulate_labels: the error rate {} of \"{}\" should lie in [0, 1].", labeller.error_rate, labeller.name));
  }

  Draw draw = Stream(seed, "label noise").at(0);
  NoisyLabels noisy;
  noisy.sources = draw.permutation(n).remainder(S);
  const at::Tensor hit = draw.uniform({n});
  const at::Tensor shift = draw.integers(classes - 1, {n}).add(1);  // 1 … classes − 1: never the true class again
  noisy.labels = truth.clone();
  const auto* source = noisy.sources.const_data_ptr<int64_t>();
  const auto* u = hit.const_data_ptr<double>();
  const auto* by = shift.const_data_ptr<int64_t>();
  auto* label = noisy.labels.mutable_data_ptr<int64_t>();
  std::vector<int64_t> errors(labellers.size(), 0), samples(labellers.size(), 0);
  for (int64_t i = 0; i < n; ++i) {
    require(label[i] >= 0 && label[i] < classes,
            fmt::format("simulate_labels: truth[{}] = {} is out of range; there are {} classes.", i, label[i], classes));
    const auto s = static_cast<size_t>(source[i]);
    samples[s] += 1;
    if (u[i] >= labellers[s].error_rate) continue;
    errors[s] += 1;
    label[i] =
        labellers[s].kind == NoiseKind::kLookAlike ? look_alikes[static_cast<size_t>(label[i])] : (label[i] + by[i]) % classes;
  }
  noisy.wrong = noisy.labels.ne(truth);
  for (size_t s = 0; s < labellers.size(); ++s) {
    noisy.error_rate.push_back(static_cast<double>(errors[s]) / static_cast<double>(samples[s]));
    noisy.source_names.push_back(labellers[s].name);
  }
  return noisy;
}

}  // namespace bilevel
