#include "bilevel/problem/label_noise.h"

#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"

namespace bilevel {
namespace {

at::Tensor truth(int64_t n) { return Stream(3, "truth").at(0).integers(10, {n}); }

TEST(LabelNoise, KnowsWhichLabelsAreWrong) {
  const at::Tensor y = truth(4000);
  const NoisyLabels noisy = simulate_labels(y, mixed_labellers(1), fashion_mnist_look_alikes(), 1);
  EXPECT_TRUE(at::equal(noisy.wrong, noisy.labels.ne(y)));
  for (int64_t s = 0; s < 20; ++s) {
    const at::Tensor his = noisy.wrong.index({noisy.sources.eq(s)});
    EXPECT_EQ(his.size(0), 200);
    EXPECT_NEAR(his.to(at::kDouble).mean().item<double>(), noisy.error_rate[static_cast<size_t>(s)], 1e-15);
  }
}

TEST(LabelNoise, EachLabellerErrsAsOftenAsHeShould) {
  const at::Tensor y = truth(40000);
  const auto labellers = mixed_labellers(2);
  const NoisyLabels noisy = simulate_labels(y, labellers, fashion_mnist_look_alikes(), 2);
  for (size_t s = 0; s < labellers.size(); ++s) {
    const double p = labellers[s].error_rate;
    EXPECT_NEAR(noisy.error_rate[s], p, 4.5 * std::sqrt(p * (1 - p) / 2000)) << labellers[s].name;
  }
}

TEST(LabelNoise, RandomErrorsFallOnAllOtherClassesAlikeAndLookAlikesOnOne) {
  const at::Tensor y = truth(20000);
  const auto& map = digits_look_alikes();
  const NoisyLabels noisy = simulate_labels(
      y, {{"random", 1.0, NoiseKind::kRandom}, {"swap", 1.0, NoiseKind::kLookAlike}, {"none", 0.0, NoiseKind::kRandom}}, map, 5);
  EXPECT_EQ(noisy.error_rate, (std::vector<double>{1.0, 1.0, 0.0}));
  const at::Tensor look = at::tensor(map, at::TensorOptions(at::kLong)).index_select(0, y);
  const at::Tensor swap = noisy.sources.eq(1), random = noisy.sources.eq(0);
  EXPECT_TRUE(at::equal(noisy.labels.index({swap}), look.index({swap})));
  const at::Tensor shift = noisy.labels.sub(y).remainder(10).index({random});
  for (int64_t k = 1; k < 10; ++k) {
    const double share = shift.eq(k).to(at::kDouble).mean().item<double>();
    EXPECT_NEAR(share, 1.0 / 9, 4.5 * std::sqrt(8.0 / 81 / 6600)) << k;
  }
}

TEST(LabelNoise, IsAFunctionOfTheSeed) {
  const at::Tensor y = truth(500);
  const auto again = [&](uint64_t seed) { return simulate_labels(y, mixed_labellers(seed), digits_look_alikes(), seed); };
  EXPECT_TRUE(at::equal(again(4).labels, again(4).labels));
  EXPECT_TRUE(at::equal(again(4).sources, again(4).sources));
  EXPECT_FALSE(at::equal(again(4).labels, again(5).labels));
}

TEST(LabelNoise, TheLabellersAreThoseOfTheMainJob) {
  const auto count = [](const std::vector<Labeller>& all, NoiseKind kind, double low, double high) {
    return std::count_if(all.begin(), all.end(), [&](const Labeller& one) {
      return one.kind == kind && one.error_rate >= low && one.error_rate <= high;
    });
  };
  const auto mixed = mixed_labellers(9), swapping = swapping_labellers(9);
  ASSERT_EQ(mixed.size(), 20u);
  EXPECT_EQ(count(mixed, NoiseKind::kRandom, 0.02, 0.1), 6);
  EXPECT_EQ(count(mixed, NoiseKind::kRandom, 0.3, 0.7), 7);
  EXPECT_EQ(count(mixed, NoiseKind::kLookAlike, 0.6, 0.9), 7);
  ASSERT_EQ(swapping.size(), 20u);
  EXPECT_EQ(count(swapping, NoiseKind::kRandom, 0.02, 0.1), 6);
  EXPECT_EQ(count(swapping, NoiseKind::kLookAlike, 0.8, 0.8), 14);
  EXPECT_NE(mixed[6].error_rate, mixed_labellers(10)[6].error_rate);
}

TEST(LabelNoise, RefusesWhatMakesNoSense) {
  const at::Tensor y = truth(50);
  const std::vector<Labeller> one = {{"a", 0.5, NoiseKind::kRandom}};
  EXPECT_THROW(simulate_labels(y, {}, digits_look_alikes(), 0), Error);
  EXPECT_THROW(simulate_labels(y, {{"a", 1.5, NoiseKind::kRandom}}, digits_look_alikes(), 0), Error);
  EXPECT_THROW(simulate_labels(y, one, next_class(3), 0), Error);  // truth has classes beyond 2
  EXPECT_THROW(simulate_labels(y, one, {0, 1, 2, 3, 4, 5, 6, 7, 8, 9}, 0), Error);
  EXPECT_THROW(simulate_labels(truth(10), mixed_labellers(0), digits_look_alikes(), 0), Error);  // 20 labellers
}

}  // namespace
}  // namespace bilevel
