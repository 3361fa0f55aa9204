#include "tasks/supervised.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <random>
#include <utility>

#include "bilevel/core/config.h"
#include "bilevel/core/error.h"
#include "bilevel/core/memory_meter.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/proximal_gradient.h"
#include "bilevel/inner/registry.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/digits.h"
#include "bilevel/problem/inner_constraints.h"
#include "bilevel/problem/npy.h"
#include "tasks/registry.h"

namespace bilevel::supervised_test {
namespace {

using Kind = Hyperparameter::Kind;
using Map = Hyperparameter::Map;
using Per = Hyperparameter::Per;
using torch::autograd::grad;

constexpr int64_t kN = 14, kM = 9, kD = 4, kC = 3, kSources = 5;

Draw draw(int64_t t) { return Stream(7, "supervised test").at(t); }

SupervisedData random_data(const std::string& loss = "softmax", at::ScalarType dtype = at::kDouble) {
  const auto labels = [&](int64_t t, int64_t n) {
    if (loss == "squared") return draw(t).normal({n}, dtype);
    return draw(t).integers(loss == "logistic" ? 2 : kC, {n});
  };
  SupervisedData data;
  data.inner = {draw(0).normal({kN, kD}, dtype), labels(1, kN)};
  data.outer = {draw(2).normal({kM, kD}, dtype), labels(3, kM)};
  data.test = {draw(4).normal({kM, kD}, dtype), labels(5, kM)};
  data.sources = at::arange(kN).remainder(kSources);
  return data;
}

SupervisedOptions options_with(std::vector<Hyperparameter> hyperparameters, const std::string& loss = "softmax") {
  SupervisedOptions options;
  options.loss = loss;
  options.dtype = at::kDouble;
  options.hyperparameters = std::move(hyperparameters);
  options.outputs = loss == "softmax" ? kC : 1;
  return options;
}

double number(const at::Tensor& tensor) { return tensor.item<double>(); }

// Losses of a linear softmax model from PyTorch's own functions, row-major; y is W [C, d], b [C].
at::Tensor plain_losses(const at::Tensor& y, const Samples& samples) {
  const at::Tensor W = y.narrow(0, 0, kC * kD).view({kC, kD}), b = y.narrow(0, kC * kD, kC);
  return at::cross_entropy_loss(at::linear(samples.features, W, b), samples.labels, {}, at::Reduction::None);
}
at::Tensor W_of(const at::Tensor& y) { return y.narrow(0, 0, kC * kD).view({kC, kD}); }
at::Tensor b_of(const at::Tensor& y) { return y.narrow(0, kC * kD, kC); }

struct Case {
  std::string name;
  SupervisedOptions options;
  std::function<at::Tensor(const at::Tensor& x, const at::Tensor& y, const SupervisedData& data)> expected;
};

std::vector<Case> cases() {
  const auto weighted = [](const at::Tensor& w, const at::Tensor& y, const SupervisedData& data) {
    return (w * plain_losses(y, data.inner)).sum() / kN;
  };
  const auto mean = [](const at::Tensor& y, const SupervisedData& data) { return plain_losses(y, data.inner).mean(); };
  SupervisedOptions fixed = options_with({{.kind = Kind::kSourceWeight}});
  fixed.l2 = 0.3;
  SupervisedOptions fixed_bias = fixed;
  fixed_bias.l2_bias = true;
  return {
      {"SampleWeight", options_with({{.kind = Kind::kSampleWeight}}),
       [=](const auto& x, const auto& y, const auto& data) { return weighted(x.sigmoid(), y, data); }},
      {"SampleWeightIdentity", options_with({{.kind = Kind::kSampleWeight, .map = Map::kIdentity}}),
       [=](const auto& x, const auto& y, const auto& data) { return weighted(x, y, data); }},
      {"SampleWeightSoftplus", options_with({{.kind = Kind::kSampleWeight, .map = Map::kSoftplus}}),
       [=](const auto& x, const auto& y, const auto& data) { return weighted((1 + x.exp()).log(), y, data); }},
      {"SourceWeight", options_with({{.kind = Kind::kSourceWeight}}),
       [=](const auto& x, const auto& y, const auto& data) {
         std::vector<at::Tensor> w;
         for (int64_t i = 0; i < kN; ++i) w.push_back(x[i % kSources].sigmoid());
         return weighted(at::stack(w), y, data);
       }},
      {"SourceAndSampleWeightMultiply", options_with({{.kind = Kind::kSourceWeight}, {.kind = Kind::kSampleWeight}}),
       [=](const auto& x, const auto& y, const auto& data) {
         std::vector<at::Tensor> w;
         for (int64_t i = 0; i < kN; ++i) w.push_back(x[i % kSources].sigmoid() * x[kSources + i].sigmoid());
         return weighted(at::stack(w), y, data);
       }},
      {"L2", options_with({{.kind = Kind::kL2, .map = Map::kExp}}),
       [=](const auto& x, const auto& y, const auto& data) { return mean(y, data) + 0.5 * x[0].exp() * W_of(y).square().sum(); }},
      {"L2WithBias", options_with({{.kind = Kind::kL2, .map = Map::kIdentity, .bias = true}}),
       [=](const auto& x, const auto& y, const auto& data) { return mean(y, data) + 0.5 * x[0] * y.square().sum(); }},
      {"L2PerFeature", options_with({{.kind = Kind::kL2, .map = Map::kExp, .per = Per::kFeature}}),
       [=](const auto& x, const auto& y, const auto& data) {
         at::Tensor R = mean(y, data);
         for (int64_t j = 0; j < kD; ++j) R = R + 0.5 * x[j].exp() * W_of(y).select(1, j).square().sum();
         return R;
       }},
      {"L2PerFeatureWithBias", options_with({{.kind = Kind::kL2, .map = Map::kExp, .per = Per::kFeature, .bias = true}}),
       [=](const auto& x, const auto& y, const auto& data) {
         at::Tensor R = mean(y, data) + 0.5 * x[kD].exp() * b_of(y).square().sum();
         for (int64_t j = 0; j < kD; ++j) R = R + 0.5 * x[j].exp() * W_of(y).select(1, j).square().sum();
         return R;
       }},
      {"L2PerClassWithBias", options_with({{.kind = Kind::kL2, .map = Map::kExp, .per = Per::kClass, .bias = true}}),
       [=](const auto& x, const auto& y, const auto& data) {
         at::Tensor R = mean(y, data);
         for (int64_t c = 0; c < kC; ++c) R = R + 0.5 * x[c].exp() * (W_of(y)[c].square().sum() + b_of(y)[c].square());
         return R;
       }},
      {"L2PerClass", options_with({{.kind = Kind::kL2, .map = Map::kIdentity, .per = Per::kClass}}),
       [=](const auto& x, const auto& y, const auto& data) {
         at::Tensor R = mean(y, data);
         for (int64_t c = 0; c < kC; ++c) R = R + 0.5 * x[c] * W_of(y)[c].square().sum();
         return R;
       }},
      {"L2PerLayer", options_with({{.kind = Kind::kL2, .map = Map::kExp, .per = Per::kLayer}}),
       [=](const auto& x, const auto& y, const auto& data) { return mean(y, data) + 0.5 * x[0].exp() * W_of(y).square().sum(); }},
      {"FixedL2", fixed,
       [=](const auto& x, const auto& y, const auto& data) {
         return weighted(x.sigmoid().index_select(0, data.sources), y, data) + 0.15 * W_of(y).square().sum();
       }},
      {"FixedL2WithBias", fixed_bias,
       [=](const auto& x, const auto& y, const auto& data) {
         return weighted(x.sigmoid().index_select(0, data.sources), y, data) + 0.15 * y.square().sum();
       }},
  };
}

class Formula : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Supervised, Formula, testing::ValuesIn(cases()), [](const auto& one) { return one.param.name; });

struct Point {
  at::Tensor x, y;
};
Point random_point(const Problem& problem) {
  return {draw(10).normal({problem.outer_layout().size()}).requires_grad_(),
          draw(11).normal({problem.inner_layout().size()}).requires_grad_()};
}

TEST_P(Formula, IsThatOfTheDesignWithItsGradients) {
  const SupervisedData data = random_data();
  const SupervisedProblem problem(GetParam().options, data);
  const auto [x, y] = random_point(problem);
  const at::Tensor g = problem.inner_loss(x, y, {}), expected = GetParam().expected(x, y, data);
  EXPECT_NEAR(number(g), number(expected), 1e-13 * std::abs(number(expected)));
  const auto got = grad({g}, {x, y}), wanted = grad({expected}, {x, y});
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_GT(number(wanted[i].norm()), 1e-3);
    EXPECT_LT(number((got[i] - wanted[i]).norm()), 1e-12 * number(wanted[i].norm()));
  }
  EXPECT_NEAR(number(problem.outer_loss(x, y, {})), number(plain_losses(y, data.outer).mean()), 1e-13);
}

// H v and ∂yx g v against central differences of the gradient.
TEST_P(Formula, HasTheSecondDerivativesOfItsDifferences) {
  const SupervisedProblem problem(GetParam().options, random_data());
  const auto [x, y] = random_point(problem);
  const at::Tensor v = draw(12).normal(y.sizes()), u = draw(13).normal(x.sizes());
  const auto gradient = [&](const at::Tensor& at_x, const at::Tensor& at_y) {
    const at::Tensor leaf = at_y.detach().requires_grad_();
    return grad({problem.inner_loss(at_x.detach(), leaf, {})}, {leaf})[0];
  };
  const at::Tensor r = grad({problem.inner_loss(x, y, {})}, {y}, {}, true, true)[0];
  const auto products = grad({r.dot(v)}, {y, x});
  constexpr double kEps = 1e-5;
  const at::Tensor Hv = (gradient(x, y + kEps * v) - gradient(x, y - kEps * v)) / (2 * kEps);
  const at::Tensor Gu = (gradient(x + kEps * u, y) - gradient(x - kEps * u, y)) / (2 * kEps);
  EXPECT_LT(number((products[0] - Hv).norm()), 1e-7 * number(Hv.norm()));
  EXPECT_NEAR(number(products[1].dot(u)), number(Gu.dot(v)), 1e-7 * number(Gu.norm() * v.norm()));
}

TEST_P(Formula, OfABatchIsThatOfTheSubset) {
  const at::Tensor rows = at::tensor({3, 11, 4, 0, 7}, at::kLong);
  const SupervisedData data = random_data();
  const SupervisedProblem problem(GetParam().options, data);
  const auto [x, y] = random_point(problem);
  // The weighted mean over the batch, and the regulariser whole: g(batch) − R = mean over the batch of w_i loss_i.
  at::Tensor w = at::ones({kN}, at::kDouble);
  const auto values = problem.outer_layout().split(problem.values_of(x));
  for (size_t i = 0; i < values.size(); ++i) {
    const Kind kind = GetParam().options.hyperparameters[i].kind;
    if (kind == Kind::kSampleWeight) w = w * values[i];
    if (kind == Kind::kSourceWeight) w = w * values[i].index_select(0, data.sources);
  }
  const at::Tensor l = plain_losses(y, data.inner) * w;
  const at::Tensor R = problem.inner_loss(x, y, {}) - l.mean();
  Batch batch;
  batch.samples = rows;
  EXPECT_NEAR(number(problem.inner_loss(x, y, batch)), number(l.index_select(0, rows).mean() + R), 1e-12);
  batch.samples = at::tensor({8, 2, 2}, at::kLong);
  EXPECT_NEAR(number(problem.outer_loss(x, y, batch)), number(plain_losses(y, data.outer).index_select(0, batch.samples).mean()),
              1e-12);
}

TEST(Supervised, BatchesTakeSourcesAndSamplesTogether) {
  const SupervisedData data = random_data();
  SupervisedOptions options = options_with({{.kind = Kind::kSourceWeight}, {.kind = Kind::kSampleWeight}});
  const SupervisedProblem problem(options, data);
  const auto [x, y] = random_point(problem);
  Batch batch;
  batch.samples = at::tensor({13, 2}, at::kLong);
  const at::Tensor l = plain_losses(y, data.inner);
  const at::Tensor expected =
      (x[3].sigmoid() * x[kSources + 13].sigmoid() * l[13] + x[2].sigmoid() * x[kSources + 2].sigmoid() * l[2]) / 2;
  EXPECT_NEAR(number(problem.inner_loss(x, y, batch)), number(expected), 1e-13);
}

TEST(Supervised, FixedSampleWeightsMultiply) {
  SupervisedData data = random_data();
  data.sample_weights = draw(20).uniform({kN});
  const SupervisedProblem problem(options_with({{.kind = Kind::kSourceWeight}}), data);
  const auto [x, y] = random_point(problem);
  const at::Tensor w = data.sample_weights * x.sigmoid().index_select(0, data.sources);
  EXPECT_NEAR(number(problem.inner_loss(x, y, {})), number((w * plain_losses(y, data.inner)).mean()), 1e-13);
}

TEST(Supervised, TheOuterLossIsTheMeanOfItsSamples) {
  const SupervisedData data = random_data();
  const SupervisedProblem problem(options_with({{.kind = Kind::kL2, .map = Map::kExp}}), data);
  const at::Tensor y = draw(20).normal({problem.inner_layout().size()}, at::kDouble), x = problem.initial_outer();
  ASSERT_TRUE(problem.has_outer_sample_losses());
  EXPECT_TRUE(at::allclose(problem.outer_sample_losses(x, y, {}), plain_losses(y, data.outer), 0, 1e-12));
  EXPECT_NEAR(number(problem.outer_loss(x, y, {})), number(plain_losses(y, data.outer).mean()), 1e-12);
  Batch batch;
  batch.samples = at::tensor({4, 0, 4});
  const at::Tensor of_batch = plain_losses(y, data.outer).index_select(0, batch.samples);
  EXPECT_TRUE(at::allclose(problem.outer_sample_losses(x, y, batch), of_batch, 0, 1e-12));
}

TEST(Supervised, SamplesOneAfterTheOtherAreReadWhereTheyAre) {
  SupervisedData data = random_data();
  const SupervisedProblem problem(options_with({{.kind = Kind::kSampleWeight}}), data);
  const at::Tensor y = draw(20).normal({problem.inner_layout().size()}, at::kDouble),
                   x = draw(21).normal({problem.outer_layout().size()}, at::kDouble);
  const auto loss_and_bytes = [&](const std::vector<int64_t>& samples) {
    Batch batch;
    batch.samples = at::tensor(samples, at::kLong);
    const MemoryMeter meter;
    const double loss = number(problem.inner_loss(x, y, batch));
    return std::pair(loss, meter.peak_bytes());
  };
  const auto [in_order, fewer] = loss_and_bytes({2, 3, 4, 5});
  const auto [shuffled, more] = loss_and_bytes({3, 2, 5, 4});
  EXPECT_NEAR(in_order, shuffled, 1e-14);
  EXPECT_NE(in_order, loss_and_bytes({3, 4, 5, 6}).first);
  EXPECT_LT(fewer, more);
  EXPECT_THROW(loss_and_bytes({problem.inner_samples() - 1, problem.inner_samples()}), Error);
}

TEST(Supervised, SquaredAndLogisticLossesAreThoseOfTheDesign) {
  for (const std::string loss : {"squared", "logistic"}) {
    const SupervisedData data = random_data(loss);
    const SupervisedProblem problem(options_with({{.kind = Kind::kSampleWeight}}, loss), data);
    const auto [x, y] = random_point(problem);
    const at::Tensor p = at::mv(data.inner.features, y.narrow(0, 0, kD)) + y[kD];
    const at::Tensor t = data.inner.labels.to(at::kDouble);
    const at::Tensor l =
        loss == "squared" ? 0.5 * (p - t).square() : -(t * p.sigmoid().log() + (1 - t) * (1 - p.sigmoid()).log());
    EXPECT_NEAR(number(problem.inner_loss(x, y, {})), number((x.sigmoid() * l).mean()), 1e-12) << loss;
  }
}

TEST(Supervised, PerLayerReachesEachLayerOfANetwork) {
  SupervisedOptions options = options_with({{.kind = Kind::kL2, .map = Map::kExp, .per = Per::kLayer, .bias = true}});
  options.model = {.kind = "mlp", .hidden = {6}};
  const SupervisedProblem problem(options, random_data());
  ASSERT_EQ(problem.outer_layout().size(), 2);
  const auto [x, y] = random_point(problem);
  const auto parts = problem.inner_layout().split(y);
  const at::Tensor gradient = grad({problem.inner_loss(x, y, {})}, {x})[0];
  EXPECT_NEAR(number(gradient[0]), number(0.5 * x[0].exp() * (parts[0].square().sum() + parts[1].square().sum())), 1e-12);
  EXPECT_NEAR(number(gradient[1]), number(0.5 * x[1].exp() * (parts[2].square().sum() + parts[3].square().sum())), 1e-12);
}

TEST(Supervised, OutputsComposeToTheLoss) {
  SupervisedOptions options = options_with({{.kind = Kind::kSampleWeight}});
  options.l2 = 0.2;
  const SupervisedProblem problem(options, random_data());
  const auto [x, y] = random_point(problem);
  Batch batch;
  batch.samples = at::tensor({1, 5}, at::kLong);
  for (const Batch& one : {Batch{}, batch}) {
    const at::Tensor z = problem.inner_outputs(y, one);
    EXPECT_EQ(z.size(0), kC);
    EXPECT_EQ(number(problem.inner_loss_of_outputs(x, y, z, one)), number(problem.inner_loss(x, y, one)));
    EXPECT_EQ(number(problem.outer_loss_of_outputs(x, y, problem.outer_outputs(y, one), one)),
              number(problem.outer_loss(x, y, one)));
  }
}

TEST(Supervised, OutputsAreLinearInTheLastLayer) {
  for (const ModelOptions& model : {ModelOptions{}, ModelOptions{.kind = "mlp", .hidden = {5, 4}}, ModelOptions{.bias = false}}) {
    SupervisedOptions options = options_with({{.kind = Kind::kSampleWeight}});
    options.model = model;
    const SupervisedProblem problem(options, random_data());
    const auto [x, y] = random_point(problem);
    const at::Tensor last = y.index_select(0, output_layer_positions(problem));
    Batch batch;
    batch.samples = at::tensor({1, 5}, at::kLong);
    const at::Tensor phi = problem.inner_features(y, batch);
    at::Tensor z = last.narrow(0, 0, kC * phi.size(0)).view({kC, -1}).mm(phi);
    EXPECT_EQ(problem.output_layer()->bias.empty(), !model.bias);
    if (model.bias) z = z + last.narrow(0, kC * phi.size(0), kC).unsqueeze(1);
    EXPECT_TRUE(at::allclose(z, problem.inner_outputs(y, batch), 1e-12, 1e-12));
    EXPECT_EQ(problem.outer_features(y, {}).size(1), problem.outer_samples());
  }
}

TEST(Supervised, GivesTheStepSizeToTheRule) {
  const SupervisedProblem problem(options_with({{.kind = Kind::kSourceWeight}, {.kind = Kind::kStepSize, .map = Map::kExp}}),
                                  random_data());
  ASSERT_TRUE(problem.has_rule_hyperparameters());
  const at::Tensor x = draw(1).normal({kSources + 1}).requires_grad_();
  const auto h = problem.rule_hyperparameters(x, 3);
  ASSERT_EQ(h.size(), 1);
  EXPECT_EQ(h[0].first, "lr");
  EXPECT_NEAR(number(h[0].second), std::exp(number(x[kSources])), 1e-14);
  EXPECT_NEAR(number(grad({h[0].second}, {x})[0][kSources]), std::exp(number(x[kSources])), 1e-14);
  EXPECT_FALSE(SupervisedProblem(options_with({{.kind = Kind::kSourceWeight}}), random_data()).has_rule_hyperparameters());
}

TEST(Supervised, GivesHyperparametersPerLayerAndPerStepToTheRule) {
  SupervisedOptions options = options_with({{.kind = Kind::kStepSize, .map = Map::kExp, .per = Per::kLayer},
                                            {.kind = Kind::kMomentum, .map = Map::kSigmoid, .per = Per::kStep},
                                            {.kind = Kind::kWeightDecay, .map = Map::kIdentity}});
  options.model.kind = "mlp";
  options.model.hidden = {5};
  options.steps = 4;
  const SupervisedProblem problem(options, random_data());
  ASSERT_EQ(problem.outer_layout().size(), 2 + 4 + 1);
  const at::Tensor x = draw(1).normal({7});
  for (const int64_t t : {0, 3, 4}) {  // a look at the end asks for the step after the last
    const auto h = problem.rule_hyperparameters(x, t);
    ASSERT_EQ(h.size(), 3u);
    EXPECT_EQ(h[0].first, "lr");
    const int64_t first = 5 * kD + 5, all = problem.inner_layout().size();
    ASSERT_EQ(h[0].second.size(0), all);
    EXPECT_TRUE(at::equal(h[0].second.narrow(0, 0, first), x[0].exp().expand({first})));
    EXPECT_TRUE(at::equal(h[0].second.narrow(0, first, all - first), x[1].exp().expand({all - first})));
    EXPECT_EQ(h[1].first, "momentum");
    EXPECT_EQ(number(h[1].second), number(x[2 + std::min<int64_t>(t, 3)].sigmoid()));
    EXPECT_EQ(h[2].first, "weight_decay");
    EXPECT_EQ(number(h[2].second), number(x[6]));
  }
}

TEST(Supervised, SharesAValueOfTheRuleOverAWindowOfSteps) {
  SupervisedOptions options = options_with({{.kind = Kind::kStepSize, .map = Map::kIdentity, .per = Per::kStep, .window = 3}});
  options.steps = 7;  // the last window is short
  const SupervisedProblem problem(options, random_data());
  ASSERT_EQ(problem.outer_layout().size(), 3);
  const at::Tensor x = draw(1).normal({3});
  const std::vector<int64_t> window_of = {0, 0, 0, 1, 1, 1, 2, 2};  // and a look after the end
  for (size_t t = 0; t < window_of.size(); ++t) {
    EXPECT_EQ(number(problem.rule_hyperparameters(x, static_cast<int64_t>(t))[0].second), number(x[window_of[t]])) << t;
  }
  options.hyperparameters[0].window = 0;
  EXPECT_THAT([&] { SupervisedProblem(options, random_data()); },
              ::testing::ThrowsMessage<Error>(::testing::HasSubstr("step_size: window")));
}

// dF_T/dx of every hyperparameter of a rule, of the ridge beside them, against central differences of F_T.
TEST(Supervised, DerivativesByHyperparametersOfTheRuleAreThoseOfDifferences) {
  const Hyperparameter ridge{.kind = Kind::kL2, .map = Map::kExp, .init = at::scalar_tensor(-3.0, at::kDouble)};
  const auto one = [](Kind kind, Per per, Map map, double init) {
    return Hyperparameter{.kind = kind, .map = map, .init = at::scalar_tensor(init, at::kDouble), .per = per};
  };
  const auto lr = [&](Per per, double value) { return one(Kind::kStepSize, per, Map::kExp, std::log(value)); };
  const auto mu = [&](Per per) { return one(Kind::kMomentum, per, Map::kSigmoid, 0.5); };
  const auto w = [&](Per per) { return one(Kind::kWeightDecay, per, Map::kIdentity, 0.1); };
  struct Row {
    std::string keys;
    std::vector<Hyperparameter> hyperparameters;
  };
  const std::vector<Row> rows = {
      {"rule = 'sgd'", {ridge, lr(Per::kLayer, 0.3), mu(Per::kStep), w(Per::kOne)}},
      {"rule = 'sgd'\nnesterov = true\nclip_norm = 0.3", {lr(Per::kStep, 0.3), mu(Per::kLayer), w(Per::kLayer), ridge}},
      {"rule = 'sgd'\nschedule = 'cosine'\neta_min = 0.05\nclip_norm = 0.5", {lr(Per::kOne, 0.4), w(Per::kStep)}},
      // An ε of this size: differences across a gradient that is near 0 would be poor with the default.
      {"rule = 'adam'\neps = 1e-2", {lr(Per::kStep, 0.05), w(Per::kLayer), ridge}},
      {"rule = 'adam'\neps = 1e-2\namsgrad = true\nschedule = 'step'\nstep_size = 3",
       {ridge, lr(Per::kLayer, 0.05), w(Per::kStep)}},
      {"rule = 'adamw'\nschedule = 'warmup-cosine'\ntotal_iters = 3", {ridge, lr(Per::kLayer, 0.05), w(Per::kStep)}},
      {"rule = 'rmsprop'\nalpha = 0.9", {lr(Per::kLayer, 0.03), mu(Per::kStep), w(Per::kOne), ridge}},
      {"rule = 'rmsprop'\ncentered = true\nalpha = 0.8", {lr(Per::kStep, 0.03), w(Per::kLayer)}},
      {"rule = 'adagrad'\nlr_decay = 0.1\nclip_norm = 0.3", {lr(Per::kStep, 0.1), w(Per::kLayer), ridge}},
      {"rule = 'adagrad'\ninitial_accumulator_value = 0.1\nschedule = 'linear'", {lr(Per::kLayer, 0.3), w(Per::kStep), ridge}},
      {"rule = 'adadelta'\neps = 1e-2", {lr(Per::kStep, 2.0), w(Per::kLayer), ridge}},
      {"rule = 'adamax'", {lr(Per::kLayer, 0.05), w(Per::kStep), ridge}},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.keys);
    SupervisedOptions options = options_with(row.hyperparameters);
    options.model.kind = "mlp";
    options.model.hidden = {4};
    options.steps = 6;
    const SupervisedProblem problem(options, random_data());
    const AutodiffOracle oracle(problem);
    Config config = Config::parse(row.keys + "\nsteps = 6", "row.toml");
    Section section = config.root();
    const at::Tensor x = problem.initial_outer();
    const auto solver = make_inner_solver(section, problem, x, 0, {});
    section.finish();
    const at::Tensor y0 = problem.initial_inner(x, 0);
    const auto F_T = [&](const at::Tensor& at) {
      return number(problem.outer_loss(at, solver->solve(oracle, at, 0, {y0}, {}).y, {}));
    };
    at::Tensor expected = at::zeros_like(x);
    for (int64_t i = 0; i < x.size(0); ++i) {
      at::Tensor step = at::zeros_like(x);
      step[i] = 1e-5;
      expected[i] = (F_T(x + step) - F_T(x - step)) / 2e-5;
    }
    for (const Memory memory : {Memory::kGraphs, Memory::kCheckpoints}) {
      const Unrolled unrolled(UnrolledOptions{.memory = memory});
      InnerSolution solution = solver->solve(oracle, x, 0, {y0}, unrolled.trajectory());
      const at::Tensor value = unrolled.estimate({oracle, *solver, x, solution, Batch{}, Batch{}, {}}).value;
      for (const Part& part : problem.outer_layout().parts()) {
        const at::Tensor e = expected.narrow(0, part.offset, part.size), v = value.narrow(0, part.offset, part.size);
        EXPECT_GT(number(e.norm()), 1e-5) << part.name;
        EXPECT_LT(number((e - v).norm()), 1e-6 * number(e.norm()) + 1e-9) << part.name;
      }
    }
  }
}

// A weight decay of the rule moves the optimum as a ridge on weights and biases does.
TEST(Supervised, AnImplicitDerivativeByTheWeightDecayIsThatByARidge) {
  const at::Tensor init = at::scalar_tensor(-2.0, at::kDouble);
  at::Tensor values[2];
  for (const bool decay : {true, false}) {
    Hyperparameter one{.kind = decay ? Kind::kWeightDecay : Kind::kL2, .map = Map::kExp, .init = init};
    one.bias = !decay;
    const SupervisedProblem problem(options_with({one}), random_data());
    const AutodiffOracle oracle(problem);
    const at::Tensor x = problem.initial_outer();
    Section inner = Config::parse("steps = 20000\ntolerance = 1e-11\nclip_norm = 5.0", "inner.toml").root();
    const auto solver = make_inner_solver(inner, problem, x, 0, {});
    Section section = Config::parse("solver = 'dense'", "estimator.toml").root();
    const auto estimator = make_estimator("implicit", section);
    EXPECT_TRUE(estimator->objections(problem, *solver).empty());
    InnerSolution solution = solver->solve(oracle, x, 0, {problem.initial_inner(x, 0)}, {});
    ASSERT_EQ(solution.status, Status::kConverged) << solution.message;
    values[decay] = estimator->estimate({oracle, *solver, x, solution, Batch{}, Batch{}, {}}).value;
  }
  EXPECT_GT(number(values[0].abs()), 1e-3);
  EXPECT_NEAR(number(values[1]), number(values[0]), 1e-8 * number(values[0].abs()));
}

TEST(Supervised, TellsTheL1PenaltyOfEachWeight) {
  const SupervisedData data = random_data();
  const auto penalty = [&](const Hyperparameter& l1, const at::Tensor& x) {
    const SupervisedProblem problem(options_with({l1}), data);
    EXPECT_TRUE(problem.has_inner_constraints());
    return problem.inner_constraints(x).l1;
  };
  const at::Tensor y = draw(3).normal({kC * kD + kC});
  const at::Tensor one = draw(4).normal({}), features = draw(5).normal({kD}), classes = draw(6).normal({kC});
  const auto sum = [&](const at::Tensor& l1) { return number((l1 * y.abs()).sum()); };
  EXPECT_NEAR(sum(penalty({.kind = Kind::kL1, .map = Map::kExp}, one.reshape({1}))), number(one.exp() * W_of(y).abs().sum()),
              1e-13);
  EXPECT_NEAR(sum(penalty({.kind = Kind::kL1, .map = Map::kExp, .per = Per::kFeature}, features)),
              number((features.exp() * W_of(y).abs().sum(0)).sum()), 1e-13);
  EXPECT_NEAR(sum(penalty({.kind = Kind::kL1, .map = Map::kExp, .per = Per::kClass, .bias = true}, classes)),
              number((classes.exp() * (W_of(y).abs().sum(1) + b_of(y).abs())).sum()), 1e-13);
  EXPECT_NEAR(sum(penalty({.kind = Kind::kL1, .map = Map::kIdentity, .per = Per::kLayer}, one.reshape({1}).abs())),
              number(one.abs() * W_of(y).abs().sum()), 1e-13);
  const at::Tensor x = features.clone().requires_grad_();
  const at::Tensor l1 = penalty({.kind = Kind::kL1, .map = Map::kExp, .per = Per::kFeature}, x);
  EXPECT_TRUE(at::allclose(grad({l1.sum()}, {x})[0], kC * features.exp()));
  SupervisedOptions fixed = options_with({{.kind = Kind::kSourceWeight}});
  fixed.l1 = 0.2;
  const SupervisedProblem problem(fixed, data);
  EXPECT_NEAR(sum(problem.inner_constraints(problem.initial_outer()).l1), 0.2 * number(W_of(y).abs().sum()), 1e-13);
  EXPECT_FALSE(SupervisedProblem(options_with({{.kind = Kind::kSourceWeight}}), data).has_inner_constraints());
}

// The path of the lasso: at the penalty max_j |∂g_j(0)| all weights are zero, a little below it one is not.
TEST(Supervised, TheLassoBeginsWhereItShould) {
  SupervisedOptions options = options_with({{.kind = Kind::kL1, .map = Map::kExp}}, "squared");
  options.model.bias = false;
  const SupervisedProblem problem(options, random_data("squared"));
  const AutodiffOracle oracle(problem);
  const at::Tensor y0 = problem.initial_inner(problem.initial_outer(), 0);
  const double most = number(oracle.inner(problem.initial_outer(), at::zeros_like(y0), {}).y.abs().max());
  const ProximalGradient solver({.tolerance = 1e-10});
  for (const double factor : {1.001, 0.95}) {
    const at::Tensor x = at::scalar_tensor(std::log(factor * most), at::kDouble).reshape({1});
    const InnerSolution s = solver.solve(oracle, x, 0, {y0}, {});
    EXPECT_EQ(s.status, Status::kConverged);
    EXPECT_EQ(s.y.ne(0).sum().item<int64_t>(), factor > 1 ? 0 : 1);
  }
}

TEST(Supervised, ReportsAccuracyAndTestLoss) {
  const SupervisedData data = random_data();
  const SupervisedProblem problem(options_with({{.kind = Kind::kSourceWeight}}), data);
  const auto [x, y] = random_point(problem);
  const auto metrics = problem.metrics(x, y);
  const auto accuracy = [&](const Samples& samples) {
    return number(at::linear(samples.features, W_of(y), b_of(y)).argmax(1).eq(samples.labels).to(at::kDouble).mean());
  };
  EXPECT_EQ(metrics.at("outer_accuracy"), accuracy(data.outer));
  EXPECT_EQ(metrics.at("test_accuracy"), accuracy(data.test));
  EXPECT_NEAR(metrics.at("test_loss"), number(plain_losses(y, data.test).mean()), 1e-13);
}

TEST(Supervised, WorksInFloat) {
  SupervisedOptions options =
      options_with({{.kind = Kind::kSampleWeight}, {.kind = Kind::kL2, .map = Map::kExp, .per = Per::kFeature}});
  const SupervisedProblem exact(options, random_data());
  options.dtype = at::kFloat;
  const SupervisedProblem problem(options, random_data());
  const auto [x, y] = random_point(exact);
  EXPECT_EQ(problem.initial_outer().scalar_type(), at::kFloat);
  EXPECT_EQ(problem.initial_inner(problem.initial_outer(), 0).scalar_type(), at::kFloat);
  const at::Tensor g = problem.inner_loss(x.to(at::kFloat), y.to(at::kFloat), {});
  EXPECT_EQ(g.scalar_type(), at::kFloat);
  EXPECT_NEAR(number(g), number(exact.inner_loss(x, y, {})), 1e-5 * number(g));
}

TEST(Supervised, RefusesOptionsAndDataThatDoNotFit) {
  const auto build = [](const SupervisedOptions& options, const SupervisedData& data) {
    SupervisedProblem problem(options, data);
  };
  const SupervisedOptions good = options_with({{.kind = Kind::kSourceWeight}});
  EXPECT_NO_THROW(build(good, random_data()));
  SupervisedData data = random_data();
  data.sources = at::Tensor();
  EXPECT_THROW(build(good, data), Error);
  data.sources = at::arange(kN).remainder(3).mul(2);  // sources 1 and 3 have no samples
  EXPECT_THROW(build(good, data), Error);
  data = random_data();
  data.inner.labels = data.inner.labels.narrow(0, 0, kN - 1);
  EXPECT_THROW(build(good, data), Error);
  data = random_data();
  data.outer.features = draw(0).normal({kM, kD + 1});
  EXPECT_THROW(build(good, data), Error);
  data = random_data();
  data.inner.features[3][1] = std::nan("");
  EXPECT_THROW(build(good, data), Error);
  data = random_data();
  data.outer = {at::empty({0, kD}), at::empty({0}, at::kLong)};
  EXPECT_THROW(build(good, data), Error);
  data = random_data();
  data.outer.labels[0] = kC;
  EXPECT_THROW(build(good, data), Error);

  SupervisedOptions twice = options_with({{.kind = Kind::kL2}, {.kind = Kind::kL2}});
  EXPECT_THROW(build(twice, random_data()), Error);
  SupervisedOptions mlp = options_with({{.kind = Kind::kL2, .per = Per::kFeature}});
  mlp.model.kind = "mlp";
  EXPECT_THROW(build(mlp, random_data()), Error);
  EXPECT_THROW(build(options_with({{.kind = Kind::kSampleWeight, .init = at::zeros({3})}}), random_data()), Error);
  EXPECT_THROW(build(options_with({{.kind = Kind::kL2,
                                    .map = Map::kIdentity,
                                    .init = at::scalar_tensor(-1.0),
                                    .constraint = Constraint::positive()}}),
                     random_data()),
               Error);
}

TEST(Supervised, StartsAtTheGivenPoint) {
  SupervisedOptions options = options_with({{.kind = Kind::kSampleWeight, .init = draw(1).normal({kN})},
                                            {.kind = Kind::kL2, .map = Map::kExp, .init = at::scalar_tensor(-3.0, at::kDouble)}});
  const SupervisedProblem problem(options, random_data());
  const at::Tensor x0 = problem.initial_outer();
  EXPECT_TRUE(at::equal(x0.narrow(0, 0, kN), options.hyperparameters[0].init));
  EXPECT_EQ(number(x0[kN]), -3);
  EXPECT_EQ(number(problem.initial_inner(x0, 0).abs().sum()), 0);
  options.init = "random";
  const SupervisedProblem random(options, random_data());
  EXPECT_GT(number(random.initial_inner(x0, 0).abs().sum()), 0.1);
  EXPECT_TRUE(at::equal(random.initial_inner(x0, 0), random.initial_inner(x0, 0)));
  EXPECT_FALSE(at::equal(random.initial_inner(x0, 0), random.initial_inner(x0, 1)));
  options.hyperparameters = {{.kind = Kind::kSampleWeight, .map = Map::kIdentity, .constraint = Constraint::simplex()}};
  EXPECT_NEAR(number(SupervisedProblem(options, random_data()).initial_outer().sum()), 1, 1e-14);
}

// ---- From a configuration, with files.

class SupervisedConfig : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() /
              fmt::format("bilevel_{}_{}", testing::UnitTest::GetInstance()->current_test_info()->name(), ::getpid());
    std::filesystem::create_directories(folder_);
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  void write(const std::string& name, const at::Tensor& tensor) const { write_npy(tensor, path(name)); }
  Config config(const std::string& text) const { return Config::parse(text, path("config.toml")); }

  void write_random_data() const {
    const SupervisedData data = random_data();
    write("train_x.npy", data.inner.features);
    write("train_y.npy", data.inner.labels);
    write("val_x.npy", data.outer.features);
    write("val_y.npy", data.outer.labels);
    write("s.npy", data.sources);
  }

  std::filesystem::path folder_;
};

constexpr const char* kData = R"(
[data]
inner = { x = "train_x.npy", y = "train_y.npy", source = "s.npy" }
outer = { x = "val_x.npy",   y = "val_y.npy" }
)";

std::string with(const std::string& hyperparameters, const std::string& rest = "") {
  return "[problem]\ndtype = 'float64'\n[problem.hyperparameters]\n" + hyperparameters + "\n" + rest + kData;
}

std::vector<std::string> parts_of(const Problem& problem) {
  std::vector<std::string> out;
  for (const Part& part : problem.outer_layout().parts()) out.push_back(part.name);
  return out;
}

TEST_F(SupervisedConfig, KeepsTheOrderOfTheFile) {
  write_random_data();
  using Names = std::vector<std::string>;
  const std::string text =
      with("step_size = { init = 0.3 }\nsource_weight = { init = 0.1 }\nl2 = { init = -2.0 }\nsample_weight = {}\n");
  Config one = config(text);
  one.set("problem.hyperparameters.l2.init=-5.0");
  const Task task = make_task(one);
  EXPECT_EQ(parts_of(*task.problem), (Names{"step_size", "source_weight", "l2", "sample_weight"}));
  const at::Tensor x0 = task.problem->initial_outer();
  ASSERT_EQ(x0.size(0), 1 + kSources + 1 + kN);
  EXPECT_EQ(number(x0[0]), 0.3);
  EXPECT_EQ(number(x0[kSources]), 0.1);
  EXPECT_EQ(number(x0[kSources + 1]), -5.0);
  EXPECT_EQ(number(task.problem->rule_hyperparameters(x0, 0)[0].second), 0.3);

  // A hyperparameter that --set adds comes last, and the completed configuration gives the same problem.
  Config two = config(with("source_weight = {}\nsample_weight = {}\n"));
  two.set("problem.hyperparameters.l2={ init = -1.0 }");
  EXPECT_EQ(parts_of(*make_task(two).problem), (Names{"source_weight", "sample_weight", "l2"}));
  const Task again = make_task(config(two.text()));
  EXPECT_EQ(parts_of(*again.problem), (Names{"source_weight", "sample_weight", "l2"}));
  EXPECT_TRUE(at::equal(again.problem->initial_outer(), make_task(two).problem->initial_outer()));
}

TEST_F(SupervisedConfig, RefusesTheSameThingFixedAndLearned) {
  write_random_data();
  write("w.npy", at::ones({kN}, at::kDouble));
  const auto message = [&](const std::string& text) {
    try {
      make_task(config(text));
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  using testing::HasSubstr;
  EXPECT_THAT(message(with("l2 = {}", "[problem.fixed]\nl2 = 0.1")), HasSubstr("cannot be fixed too"));
  EXPECT_THAT(message(with("l2 = {}", "[problem.fixed]\nl2_bias = true")), HasSubstr("bias = true"));
  EXPECT_THAT(message(with("sample_weight = {}", "[problem.fixed]\nsample_weight = 'w.npy'")), HasSubstr("cannot be fixed too"));
  EXPECT_THAT(message(with("step_size = {}", "[inner]\nlr = 0.1")), HasSubstr("cannot be fixed too"));
  EXPECT_THAT(message(with("l1 = {}", "[problem.fixed]\nl1 = 0.1")), HasSubstr("cannot be fixed too"));
  EXPECT_THAT(message(with("l1 = { per = 'step' }")), HasSubstr("not known"));
  EXPECT_THAT(message(with("momentum = { per = 'feature' }")), HasSubstr("not known"));
  EXPECT_THAT(message(with("weight_decay = {}", "[problem.fixed]\nweight_decay = 0.1")), HasSubstr("cannot be fixed too"));
  EXPECT_THAT(message(with("l2_strength = {}")), HasSubstr("not known"));
  EXPECT_THAT(message(with("sample_weigth = {}")), HasSubstr("Did you mean \"sample_weight\""));
  EXPECT_THAT(message(with("l2 = 0.1")), HasSubstr("expected a table"));
  EXPECT_THAT(message(with("l2 = { initial = 0.1 }")), HasSubstr("unknown key"));
  EXPECT_THAT(message(with("l2 = { per = 'row' }")), HasSubstr("not known"));
  EXPECT_THAT(message(with("l2 = { param = 'sigmoid' }")), HasSubstr("not known"));
  EXPECT_THAT(message(with("l2 = { min = 1.0, max = 0.0 }")), HasSubstr("above"));
  EXPECT_THAT(message(with("l2 = { min = 1.0, constraint = 'positive' }")), HasSubstr("one of the two"));
  EXPECT_THAT(message(with("l2 = { init = 'missing.npy' }")), HasSubstr("missing.npy"));
  EXPECT_THAT(message(with("")), HasSubstr("hyperparameters"));
  EXPECT_THAT(message(with("l2 = {}", "[inner]\ninit = 'ones'")), HasSubstr(".npy"));
  EXPECT_THAT(message(with("l2 = {}", "[problem.fixed]\nridge = 1.0")), HasSubstr("unknown key"));
  EXPECT_EQ(message(with("l2 = {}", "[inner]\nlr = 0.1")), "");
  EXPECT_EQ(message(with("step_size = {}", "[inner]\nlr = 'auto'")), "");
  EXPECT_EQ(message(with("l2 = {}", "[problem.fixed]\nsample_weight = 'w.npy'")), "");
}

TEST_F(SupervisedConfig, ReadsStartsAndConstraintsFromFiles) {
  write_random_data();
  const at::Tensor weights = draw(1).normal({kN}), y0 = draw(2).normal({kC * kD + kC});
  write("x0.npy", weights);
  write("y0.npy", y0);
  const Task task =
      make_task(config(with("l2 = { init = 2.0, min = 1e-8 }\nsample_weight = { init = 'x0.npy' }", "[inner]\ninit = 'y0.npy'")));
  const at::Tensor x0 = task.problem->initial_outer();
  EXPECT_TRUE(at::equal(x0.narrow(0, 1, kN), weights));
  EXPECT_TRUE(at::equal(task.problem->initial_inner(x0, 0), y0));
  const auto constraints = task.problem->outer_constraints();
  ASSERT_EQ(constraints.size(), 2);
  EXPECT_EQ(constraints[0].lower, 1e-8);
  EXPECT_EQ(constraints[0].upper, std::numeric_limits<double>::infinity());
  EXPECT_EQ(constraints[1].kind, Constraint::Kind::kNone);
}

TEST_F(SupervisedConfig, TheTemplateMakesATask) {
  const Task task = make_task(config(task_template("supervised")));
  EXPECT_EQ(task.name, "supervised");
  EXPECT_EQ(task.problem->outer_layout().size(), 64);
  EXPECT_EQ(task.problem->inner_samples(), 500);
  EXPECT_THROW(task_template("unsupervised"), Error);
}

TEST_F(SupervisedConfig, ACnnTakesImages) {
  Config cnn = config(task_template("supervised"));
  cnn.set("problem.model=cnn");
  cnn.set("problem.hyperparameters.l2.per=layer");
  const Task task = make_task(cnn);
  const at::Tensor y = task.problem->initial_inner(task.problem->initial_outer(), 0);
  EXPECT_EQ(task.problem->inner_outputs(y, {}).sizes(), at::IntArrayRef({10, 500}));
}

at::Tensor descend(const Problem& problem, const at::Tensor& x, double lr, int64_t steps) {
  at::Tensor y = problem.initial_inner(x, 0);
  for (int64_t t = 0; t < steps; ++t) {
    const at::Tensor leaf = y.detach().requires_grad_();
    y = leaf.detach() - lr * grad({problem.inner_loss(x, leaf, {})}, {leaf})[0];
  }
  return y;
}

// Data hyper-cleaning on digits; the losses after 100 steps from higher and hypertorch, which agree.
TEST_F(SupervisedConfig, ReachesThePublishedLossesOfDataCleaning) {
  at::Tensor labels = digits().labels.clone();
  for (int64_t i = 0; i < 500; i += 2) labels[i] = (labels[i] + 1 + (i / 2) % 9).remainder(10);
  const at::Tensor pixels = digits().pixels.flatten(1).to(at::kDouble).div(16);
  const auto rows = [](const at::Tensor& tensor, int64_t first, int64_t end) { return tensor.slice(0, first, end).contiguous(); };
  write("train_x.npy", rows(pixels, 0, 500));
  write("train_y.npy", rows(labels, 0, 500));
  write("val_x.npy", rows(pixels, 500, 1000));
  write("val_y.npy", rows(labels, 500, 1000));
  write("test_x.npy", rows(pixels, 1000, 1797));
  write("test_y.npy", rows(labels, 1000, 1797));
  const Task task = make_task(config(R"(
[problem]
task = "supervised"
model = "linear"
loss = "softmax"
dtype = "float64"
[problem.hyperparameters]
sample_weight = { init = 0.0, param = "sigmoid" }
[problem.fixed]
l2 = 0.01
l2_bias = true
[data]
inner = { x = "train_x.npy", y = "train_y.npy" }
outer = { x = "val_x.npy", y = "val_y.npy" }
test = { x = "test_x.npy", y = "test_y.npy" }
)"));
  const Problem& problem = *task.problem;
  const at::Tensor x = problem.initial_outer(), y = descend(problem, x, 0.5, 100);
  EXPECT_NEAR(number(problem.inner_loss(x, y, {})), 0.9594366947, 5e-11);
  EXPECT_NEAR(number(problem.outer_loss(x, y, {})), 1.6326698867, 5e-11);
  EXPECT_NEAR(problem.metrics(x, y).at("test_accuracy"), 0.670013, 5e-7);
}

// numpy.random.RandomState: mt19937 with 53-bit uniforms, normals by the polar method.
class RandomState {
 public:
  explicit RandomState(uint32_t seed) : engine_(seed) {}
  double uniform() {
    const uint32_t a = static_cast<uint32_t>(engine_()) >> 5, b = static_cast<uint32_t>(engine_()) >> 6;
    return (a * 67108864.0 + b) / 9007199254740992.0;
  }
  double normal() {
    if (kept_) return *std::exchange(kept_, std::nullopt);
    double u = 0, v = 0, r2 = 0;
    do {
      u = 2 * uniform() - 1;
      v = 2 * uniform() - 1;
      r2 = u * u + v * v;
    } while (r2 >= 1 || r2 == 0);
    const double f = std::sqrt(-2 * std::log(r2) / r2);
    kept_ = f * u;
    return f * v;
  }
  at::Tensor normals(at::IntArrayRef sizes) {
    const at::Tensor out = at::empty(sizes, at::kDouble);
    for (int64_t i = 0; i < out.numel(); ++i) out.data_ptr<double>()[i] = normal();
    return out;
  }
  at::Tensor permutation(int64_t n) {
    const at::Tensor out = at::arange(n);
    auto* order = out.data_ptr<int64_t>();
    for (int64_t i = n - 1; i > 0; --i) {
      uint32_t mask = static_cast<uint32_t>(i);
      for (const int shift : {1, 2, 4, 8, 16}) mask |= mask >> shift;
      uint32_t j = 0;
      do {
        j = static_cast<uint32_t>(engine_()) & mask;
      } while (j > i);
      std::swap(order[i], order[j]);
    }
    return out;
  }

 private:
  std::mt19937 engine_;
  std::optional<double> kept_;
};

// The logistic regression of hypertorch's notebook: one ridge for each feature, published and recomputed losses.
TEST_F(SupervisedConfig, ReachesThePublishedLossesOfLogisticRegression) {
  RandomState random(1);
  const at::Tensor oracle = random.normals({20}), X = random.normals({1000, 20});
  const at::Tensor y = (X.mv(oracle) + 0.1 * random.normals({1000})).gt(0).to(at::kLong);
  const at::Tensor order = random.permutation(1000);
  ASSERT_EQ(y.sum().item<int64_t>(), 518);
  ASSERT_EQ(order[0].item<int64_t>(), 648);
  const at::Tensor validation = order.narrow(0, 0, 500), train = order.narrow(0, 500, 500);
  write("train_x.npy", X.index_select(0, train).to(at::kFloat));
  write("train_y.npy", y.index_select(0, train));
  write("val_x.npy", X.index_select(0, validation).to(at::kFloat));
  write("val_y.npy", y.index_select(0, validation));
  const Task task = make_task(config(R"(
[problem]
loss = "logistic"
bias = false
dtype = "float64"
[problem.hyperparameters]
l2 = { per = "feature", init = 1.0, param = "identity", min = 1e-8 }
[data]
inner = { x = "train_x.npy", y = "train_y.npy" }
outer = { x = "val_x.npy", y = "val_y.npy" }
)"));
  const Problem& problem = *task.problem;
  const at::Tensor x = problem.initial_outer();
  EXPECT_NEAR(number(problem.inner_loss(x, descend(problem, x, 0.1, 10), {})), 0.6285591138, 5e-11);
  const at::Tensor w = descend(problem, x, 0.1, 100);
  EXPECT_NEAR(number(problem.inner_loss(x, w, {})), 0.6240899339, 5e-11);
  EXPECT_NEAR(number(problem.outer_loss(x, w, {})), 0.5743989630, 5e-11);
}

}  // namespace
}  // namespace bilevel::supervised_test
