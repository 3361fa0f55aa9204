#include "tasks/planted_errors.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"

namespace bilevel {
namespace {

TEST(AreaUnderCurve, IsThatOfScikitLearnWithTiesToo) {
  // sklearn.metrics.roc_auc_score(positive, score), scikit-learn 1.9.1
  EXPECT_NEAR(area_under_curve(at::tensor({0.1, 0.4, 0.35, 0.8, 0.4, 0.4, 0.9, 0.1}, at::kDouble),
                               at::tensor({0, 0, 1, 1, 1, 0, 0, 1}, at::kLong) == 1),
              0.40625, 1e-14);
  EXPECT_NEAR(area_under_curve(at::tensor({0.1, 0.2, 0.7, 0.6}, at::kDouble), at::tensor({0, 1, 1, 1}, at::kLong) == 1), 1.0,
              1e-14);
  EXPECT_THROW(area_under_curve(at::ones({3}, at::kDouble), at::ones({3}, at::kBool)), Error);
}

TEST(AreaUnderCurve, CountsASampleOfWeightThreeThreeTimes) {
  const at::Tensor score = at::tensor({0.3, 0.1, 0.6, 0.3, 0.5}, at::kDouble);
  const at::Tensor positive = at::tensor({1, 0, 1, 0, 0}, at::kLong) == 1, weight = at::tensor({3, 1, 2, 1, 4}, at::kLong);
  EXPECT_NEAR(area_under_curve(score, positive, weight),
              area_under_curve(score.repeat_interleave(weight), positive.repeat_interleave(weight)), 1e-14);
  EXPECT_GT(std::abs(area_under_curve(score, positive, weight) - area_under_curve(score, positive)), 0.01);
}

// The sums that the weights stand for, as a random draw of sources and labels finds them.
TEST(PlantedErrors, IsTheAreaForLabelsDrawnFromTheSources) {
  const int64_t S = 3, C = 4, m = 40, draws = 40000;
  Draw draw = Stream(0, "planted errors").at(0);
  const at::Tensor T = (draw.uniform({S, C, C}).to(at::kDouble) + 2 * at::eye(C, at::kDouble)).softmax(2);
  const at::Tensor share = at::tensor({0.2, 0.5, 0.3}, at::kDouble), truth = draw.integers(C, {m});
  const auto probabilities = [&](double sharpness) {
    return (draw.normal({C, m}).to(at::kDouble) + sharpness * at::one_hot(truth, C).t()).softmax(0);
  };
  const at::Tensor self = probabilities(0.5), P = probabilities(2.0);
  const PlantedErrors found = planted_errors(T, share, truth, self, P);

  const at::Tensor i = draw.integers(m, {draws}), u = draw.uniform({draws}).to(at::kDouble),
                   v = draw.uniform({draws}).to(at::kDouble);
  const at::Tensor s = (u.unsqueeze(1) > share.cumsum(0)).sum(1);
  const at::Tensor c = truth.index_select(0, i);
  const at::Tensor y = (v.unsqueeze(1) > T.index({s, c}).cumsum(1)).sum(1).clamp_max(C - 1);
  const at::Tensor doubt = 1 - self.index({y, i});
  const at::Tensor joint = P.index_select(1, i).t() * T.index({s}).gather(2, y.view({-1, 1, 1}).expand({draws, C, 1})).squeeze(2);
  const at::Tensor wrong_by_posterior = 1 - joint.gather(1, y.unsqueeze(1)).squeeze(1) / joint.sum(1);
  // A few times 1/√40000.
  EXPECT_NEAR(found.self_confidence, area_under_curve(doubt, y != c), 0.01);
  EXPECT_NEAR(found.posterior, area_under_curve(wrong_by_posterior, y != c), 0.01);
  EXPECT_GT(found.posterior, found.self_confidence + 0.1);
}

TEST(PlantedErrors, AreSeenByNobodyWhereAllLabelsAreLikeAnother) {
  const at::Tensor T = at::full({1, 2, 2}, 0.5, at::kDouble), share = at::ones({1}, at::kDouble);
  const at::Tensor truth = at::tensor({0, 1, 0, 1}, at::kLong), P = at::full({2, 4}, 0.5, at::kDouble);
  const PlantedErrors found = planted_errors(T, share, truth, P, P);
  EXPECT_DOUBLE_EQ(found.self_confidence, 0.5);
  EXPECT_DOUBLE_EQ(found.posterior, 0.5);
}

}  // namespace
}  // namespace bilevel
