#include "bilevel/problem/loss.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"

namespace bilevel::loss_test {
namespace {

using torch::autograd::grad;

struct Case {
  const char* name;
  int64_t outputs;
};

at::Tensor labels_of(const Case& c, Draw& draw, int64_t n) {
  if (std::string(c.name) == "squared") return draw.normal({n, c.outputs});
  return draw.integers(std::max<int64_t>(c.outputs, 2), {n});
}

class EveryLoss : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Loss, EveryLoss,
                         testing::Values(Case{"squared", 1}, Case{"squared", 3}, Case{"logistic", 1}, Case{"softmax", 5}),
                         [](const auto& one) { return one.param.name + std::to_string(one.param.outputs); });

TEST_P(EveryLoss, IsThatOfPyTorch) {
  Draw draw = Stream(1, "loss").at(0);
  const at::Tensor logits = draw.normal({GetParam().outputs, 40}).mul_(3);
  const at::Tensor labels = labels_of(GetParam(), draw, 40);
  const Loss loss(GetParam().name);
  at::Tensor expected;
  if (loss.name() == "squared") expected = at::mse_loss(logits.t(), labels, at::Reduction::None).sum(1) / 2;
  if (loss.name() == "logistic") {
    expected = at::binary_cross_entropy_with_logits(logits[0], labels.to(at::kDouble), {}, {}, at::Reduction::None);
  }
  if (loss.name() == "softmax") expected = at::cross_entropy_loss(logits.t(), labels, {}, at::Reduction::None);
  const at::Tensor got = loss.losses(logits, loss.targets(labels, GetParam().outputs, at::kDouble, "test"));
  ASSERT_EQ(got.sizes(), expected.sizes());
  EXPECT_LT((got - expected).abs().max().item<double>(), 1e-14 * (1 + expected.abs().max().item<double>()));
}

TEST_P(EveryLoss, HasTheFirstAndSecondDerivativesOfItsDifferences) {
  Draw draw = Stream(2, "loss").at(0);
  const Loss loss(GetParam().name);
  const at::Tensor labels = labels_of(GetParam(), draw, 12);
  const at::Tensor targets = loss.targets(labels, GetParam().outputs, at::kDouble, "test");
  const at::Tensor z = draw.normal({GetParam().outputs, 12}).requires_grad_();
  const at::Tensor weights = draw.uniform({12});
  const at::Tensor v = draw.normal(z.sizes());
  const auto value = [&](const at::Tensor& at_z) { return loss.losses(at_z, targets).dot(weights); };
  const auto gradient = [&](const at::Tensor& at_z) { return grad({value(at_z)}, {at_z}, {}, true, true)[0]; };
  const at::Tensor g = gradient(z);
  const at::Tensor Hv = grad({(g * v).sum()}, {z})[0];
  constexpr double kEps = 1e-5;
  const at::Tensor plus = (z.detach() + kEps * v).requires_grad_(), minus = (z.detach() - kEps * v).requires_grad_();
  const double directional = ((value(plus) - value(minus)) / (2 * kEps)).item<double>();
  EXPECT_NEAR((g * v).sum().item<double>(), directional, 1e-8 * g.norm().item<double>());
  const at::Tensor difference = (gradient(plus) - gradient(minus)) / (2 * kEps);
  EXPECT_LT((Hv - difference).norm().item<double>(), 1e-8 * difference.norm().item<double>());
  EXPECT_GT(difference.norm().item<double>(), 1e-3);
}

TEST(Loss, IsFiniteAtHugeLogits) {
  const at::Tensor z = at::tensor({1e4, -1e4}, at::kDouble).unsqueeze(0).requires_grad_();
  const Loss logistic("logistic");
  const at::Tensor l = logistic.losses(z, logistic.targets(at::tensor({0, 0}, at::kLong), 1, at::kDouble, "test"));
  EXPECT_EQ(l[0].item<double>(), 1e4);
  EXPECT_EQ(l[1].item<double>(), 0);
  EXPECT_EQ(grad({l.sum()}, {z})[0][0][0].item<double>(), 1);
  const Loss softmax("softmax");
  const at::Tensor logits = at::tensor({1e4, -1e4, 0.0}, at::kDouble).unsqueeze(1).requires_grad_();
  const at::Tensor s = softmax.losses(logits, softmax.targets(at::tensor({1}, at::kLong), 3, at::kDouble, "test"));
  EXPECT_EQ(s[0].item<double>(), 2e4);
  EXPECT_TRUE(grad({s.sum()}, {logits})[0].isfinite().all().item<bool>());
}

// The tail of the loss must not be cut: log(1 + e⁻³⁰) = 9.4e-14, and its slope likewise.
TEST(Loss, KeepsTheTailOfTheLogisticLoss) {
  const Loss logistic("logistic");
  const at::Tensor z = at::full({1, 1}, 30.0, at::kDouble).requires_grad_();
  const at::Tensor l = logistic.losses(z, logistic.targets(at::ones({1}, at::kLong), 1, at::kDouble, "test"));
  EXPECT_NEAR(l.item<double>(), std::exp(-30.0), 1e-3 * std::exp(-30.0));
  EXPECT_NEAR(grad({l.sum()}, {z})[0].item<double>(), -std::exp(-30.0), 1e-3 * std::exp(-30.0));
}

TEST(Loss, RefusesLabelsThatDoNotFit) {
  const Loss softmax("softmax"), logistic("logistic"), squared("squared");
  EXPECT_THROW(softmax.targets(at::tensor({0, 1, 3}, at::kLong), 3, at::kDouble, "test"), Error);
  EXPECT_THROW(softmax.targets(at::tensor({0, -1}, at::kLong), 3, at::kDouble, "test"), Error);
  EXPECT_THROW(softmax.targets(at::tensor({0.0, 0.5}), 3, at::kDouble, "test"), Error);
  EXPECT_THROW(softmax.targets(at::tensor({0.0, std::nan("")}), 3, at::kDouble, "test"), Error);
  EXPECT_THROW(softmax.output_size(at::tensor({123456789}, at::kLong)), Error);
  EXPECT_THROW(logistic.targets(at::tensor({1, 2}, at::kLong), 1, at::kDouble, "test"), Error);
  EXPECT_THROW(squared.targets(at::tensor({1.0, std::nan("")}), 1, at::kDouble, "test"), Error);
  EXPECT_THROW(squared.targets(at::zeros({4, 2}), 1, at::kDouble, "test"), Error);
  EXPECT_THROW(Loss("hinge"), Error);
  EXPECT_TRUE(
      at::equal(softmax.targets(at::tensor({0.0, 2.0}), 3, at::kDouble, "test"), at::tensor({0, 2}, at::kLong).unsqueeze(0)));
  EXPECT_EQ(softmax.output_size(at::tensor({0, 2, 1}, at::kInt)), 3);
}

TEST(Loss, PredictsTheMostProbableClass) {
  const at::Tensor logits = at::tensor({1.0, -2.0, 0.5, 3.0, 0.0, 0.7}, at::kDouble).view({3, 2});
  const Loss softmax("softmax");
  const at::Tensor p = softmax.probabilities(logits);
  EXPECT_NEAR(p.sum().item<double>(), 2.0, 1e-12);
  EXPECT_TRUE(at::equal(p.argmax(1), logits.argmax(0)));
  EXPECT_EQ(softmax.score(logits, softmax.targets(at::tensor({0, 0}, at::kLong), 3, at::kDouble, "test")), 0.5);
  const Loss logistic("logistic");
  const at::Tensor q = logistic.probabilities(logits.narrow(0, 0, 1));
  EXPECT_NEAR(q[0][1].item<double>(), 1 / (1 + std::exp(-1.0)), 1e-12);
  EXPECT_TRUE(at::equal(logistic.labels(logits.narrow(0, 0, 1)), at::tensor({1, 0}, at::kLong)));
  EXPECT_NEAR(Loss("squared").score(logits.narrow(0, 0, 1), at::tensor({0.0, 0.0}, at::kDouble).unsqueeze(0)), 2.5, 1e-12);
}

}  // namespace
}  // namespace bilevel::loss_test
