#include "tasks/label_posterior.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "bilevel/core/stream.h"

namespace bilevel {
namespace {

// Three sources over four classes: one is honest, one swaps 0 ↔ 1 in 80 % of the cases, one draws labels at random. The
// classifier guesses right in 70 % of the cases, and its P is what its guesses are worth: the share of each true class among the
// samples of a source with that guess. Without a prior the iteration then climbs to the confusions themselves, slowly where these
// are 0 or 1.
TEST(LabelPosterior, RecoversTheConfusionOfEachSource) {
  constexpr int64_t kN = 12000, kClasses = 4, kSources = 3;
  Draw draw = Stream(1, "posterior").at(0);
  const at::Tensor truth = draw.integers(kClasses, {kN}), sources = draw.integers(kSources, {kN});
  const at::Tensor swapped = at::where(truth < 2, 1 - truth, truth);
  const at::Tensor second = at::where(draw.uniform({kN}) < 0.8, swapped, truth);
  const at::Tensor third = draw.integers(kClasses, {kN});
  const at::Tensor labels = at::where(sources == 0, truth, at::where(sources == 1, second, third));
  const at::Tensor guess = at::where(draw.uniform({kN}) < 0.6, truth, draw.integers(kClasses, {kN}));
  // [S · C, C]: how often the row's source and guess (or label) met the column's class.
  const auto share = [&](const at::Tensor& of, const at::Tensor& given) {
    const at::Tensor counts = at::zeros({kSources * kClasses, kClasses}, at::kDouble)
                                  .index_put({sources * kClasses + given, of}, at::ones({kN}, at::kDouble), /*accumulate=*/true);
    return counts / counts.sum(1, /*keepdim=*/true);
  };
  const at::Tensor P = share(truth, guess).index_select(0, sources * kClasses + guess).t();
  const at::Tensor confusion = share(labels, truth).view({kSources, kClasses, kClasses});

  const LabelPosterior posterior = label_posterior(P, labels, sources, kSources, /*iterations=*/200, /*prior=*/0.0);
  EXPECT_LT((posterior.classes.sum(0) - 1).abs().max().item<double>(), 1e-12);
  EXPECT_LT((posterior.confusion.sum(2) - 1).abs().max().item<double>(), 1e-12);
  for (int64_t s = 0; s < kSources; ++s) {
    // An entry rests on about 1000 samples, and a guess tells six tenths of the truth: √(¼/1000)/0.6 = 0.026 at most.
    EXPECT_LT((posterior.confusion[s] - confusion[s]).abs().mean().item<double>(), 0.026) << s;
    const at::Tensor of_source = sources == s;
    const double accuracy = (labels == truth).masked_select(of_source).to(at::kDouble).mean().item<double>();
    EXPECT_NEAR(posterior.correct.masked_select(of_source).mean().item<double>(), accuracy, 0.01) << s;
  }
}

// One source, one class pair, worked out by hand: P = (0.6, 0.4), no prior, T from the first pass.
TEST(LabelPosterior, IsBayesRule) {
  const at::Tensor P = at::tensor({0.6, 0.4, 0.2, 0.8}, at::kDouble).view({2, 2}).t();  // samples (0.6, 0.4) and (0.2, 0.8)
  const at::Tensor labels = at::tensor({0, 1}, at::kLong), sources = at::zeros({2}, at::kLong);
  const LabelPosterior posterior = label_posterior(P, labels, sources, 1, 1, 0.0);
  const double t00 = 0.6 / 0.8, t10 = 0.4 / 1.2;  // P(y = 0 | c)
  EXPECT_NEAR(posterior.correct[0].item<double>(), 0.6 * t00 / (0.6 * t00 + 0.4 * t10), 1e-12);
  const double t01 = 0.2 / 0.8, t11 = 0.8 / 1.2;  // P(y = 1 | c)
  EXPECT_NEAR(posterior.correct[1].item<double>(), 0.8 * t11 / (0.2 * t01 + 0.8 * t11), 1e-12);
}

}  // namespace
}  // namespace bilevel
