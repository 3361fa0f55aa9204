#include "bilevel/problem/model.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "bilevel/core/config.h"
#include "bilevel/core/error.h"

namespace bilevel::model_test {
namespace {

using torch::autograd::grad;

Draw draw(int64_t t) { return Stream(1, "model").at(t); }

// The models once more, row-major and layer by layer, from PyTorch's own functions.
at::Tensor reference(const ModelOptions& options, const Model& model, const at::Tensor& y, const at::Tensor& X) {
  const auto parts = model.layout().split(y);
  const auto activation = [&](const at::Tensor& z) { return options.activation == "relu" ? z.relu() : z.tanh(); };
  const auto linear = [&](const at::Tensor& h, const Model::Layer& layer) {
    return at::linear(h, parts[layer.weight], layer.bias < 0 ? at::Tensor() : parts[layer.bias]);
  };
  at::Tensor h = X;
  const auto& layers = model.layers();
  for (size_t i = 0; i + 1 < layers.size(); ++i) {
    if (options.kind == "mlp") {
      h = activation(linear(h.flatten(1), layers[i]));
    } else {
      if (h.dim() == 3) h = h.unsqueeze(1);
      h = at::conv2d(h, parts[layers[i].weight], layers[i].bias < 0 ? at::Tensor() : parts[layers[i].bias], 1,
                     options.kernel / 2);
      h = activation(h);
      // A stride of two takes every second place of the plain convolution.
      h = options.stride == 1 ? at::avg_pool2d(h, {2, 2}) : h.slice(2, 0, h.size(2), 2).slice(3, 0, h.size(3), 2);
    }
  }
  return linear(h.flatten(1), layers.back()).t();
}

struct Case {
  std::string name;
  ModelOptions options;
};

class EveryModel : public testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(Model, EveryModel,
                         testing::Values(Case{"Linear", {}}, Case{"LinearWithoutBias", {.bias = false}},
                                         Case{"Mlp", {.kind = "mlp", .hidden = {7, 5}}},
                                         Case{"MlpReluWithoutBias",
                                              {.kind = "mlp", .bias = false, .hidden = {9}, .activation = "relu"}},
                                         Case{"Cnn", {.kind = "cnn", .channels = {3, 4}}},
                                         Case{"CnnWithoutBias", {.kind = "cnn", .bias = false, .channels = {2}, .kernel = 5}},
                                         Case{"CnnWithStride", {.kind = "cnn", .channels = {3, 4}, .stride = 2}}),
                         [](const auto& one) { return one.param.name; });

TEST_P(EveryModel, GivesThePlainModelsLogitsClassMajor) {
  const auto model = make_model(GetParam().options, {8, 6}, 3);
  const at::Tensor y = draw(0).normal({model->layout().size()}), X = draw(1).normal({11, 8, 6});
  const at::Tensor z = model->outputs(y, X);
  const at::Tensor expected = reference(GetParam().options, *model, y, X);
  ASSERT_EQ(z.sizes(), at::IntArrayRef({3, 11}));
  EXPECT_LT((z - expected).norm().item<double>(), 1e-13 * expected.norm().item<double>());
  EXPECT_TRUE(model->outputs(y.to(at::kFloat), X.to(at::kFloat)).allclose(z.to(at::kFloat), 1e-4, 1e-4));
}

// Also of relu: the differences are too short to cross one of its kinks here.
TEST_P(EveryModel, HasTheSecondDerivativesOfItsDifferences) {
  const auto model = make_model(GetParam().options, {8, 6}, 3);
  const at::Tensor X = draw(1).normal({11, 8, 6}), v = draw(2).normal({model->layout().size()});
  const at::Tensor y = draw(0).normal({model->layout().size()}).mul_(0.3);
  const auto gradient = [&](const at::Tensor& point) {
    const at::Tensor leaf = point.detach().requires_grad_();
    return std::pair(grad({model->outputs(leaf, X).logsumexp(0).sum()}, {leaf}, {}, true, true)[0], leaf);
  };
  const auto [g, leaf] = gradient(y);
  const at::Tensor Hv = grad({g.dot(v)}, {leaf})[0];
  constexpr double kEps = 1e-5;
  const at::Tensor difference = (gradient(y + kEps * v).first - gradient(y - kEps * v).first) / (2 * kEps);
  EXPECT_GT(difference.norm().item<double>(), 1e-2);
  EXPECT_LT((Hv - difference).norm().item<double>(), 1e-7 * difference.norm().item<double>());
}

TEST_P(EveryModel, StartsAtRandomAsPyTorchDoes) {
  const auto model = make_model(GetParam().options, {8, 6}, 400);
  const at::Tensor y = model->initial("random", draw(3), at::kDouble);
  const auto parts = model->layout().split(y);
  for (const Model::Layer& layer : model->layers()) {
    const double bound = 1 / std::sqrt(static_cast<double>(parts[layer.weight][0].numel()));
    for (const int64_t index : {layer.weight, layer.bias}) {
      if (index < 0) continue;
      EXPECT_LE(parts[index].abs().max().item<double>(), bound);
      if (parts[index].numel() > 300) {
        EXPECT_NEAR(parts[index].var().item<double>(), bound * bound / 3, 0.1 * bound * bound / 3);
      }
    }
  }
  EXPECT_TRUE(at::equal(y, model->initial("random", draw(3), at::kDouble)));
  EXPECT_TRUE(at::equal(y.to(at::kFloat), model->initial("random", draw(3), at::kFloat)));
  EXPECT_EQ(model->initial("zeros", draw(3), at::kFloat).abs().sum().item<double>(), 0);
}

TEST(Model, NamesItsParts) {
  const auto names = [](const ModelOptions& options) {
    std::vector<std::string> out;
    const auto model = make_model(options, {1, 8, 8}, 10);
    for (const Part& part : model->layout().parts()) out.push_back(part.name);
    return out;
  };
  using Names = std::vector<std::string>;
  EXPECT_EQ(names({}), (Names{"linear.weight", "linear.bias"}));
  EXPECT_EQ(names({.kind = "mlp", .hidden = {4, 4}}),
            (Names{"hidden0.weight", "hidden0.bias", "hidden1.weight", "hidden1.bias", "output.weight", "output.bias"}));
  EXPECT_EQ(names({.kind = "cnn", .bias = false}), (Names{"conv0.weight", "conv1.weight", "output.weight"}));
  const Part weight = make_model({}, {64}, 10)->layout().part("linear.weight");
  EXPECT_EQ(weight.shape, (std::vector<int64_t>{10, 64}));
  EXPECT_EQ(make_model({.kind = "cnn"}, {28, 28}, 10)->layout().part("output.weight").shape,
            (std::vector<int64_t>{10, 32 * 7 * 7}));
}

TEST(Model, RefusesWhatDoesNotFit) {
  EXPECT_EQ(make_model({.kind = "cnn", .stride = 2}, {7, 7}, 10)->layout().part("output.weight").shape,
            (std::vector<int64_t>{10, 32 * 2 * 2}));
  EXPECT_THROW(make_model({.kind = "cnn"}, {64}, 10), Error);
  EXPECT_THROW(make_model({.kind = "cnn"}, {3, 3}, 10), Error);
  EXPECT_THROW(make_model({.kind = "cnn", .kernel = 4}, {8, 8}, 10), Error);
  EXPECT_THROW(make_model({.kind = "mlp", .hidden = {0}}, {8}, 10), Error);
  EXPECT_THROW(make_model({.kind = "forest"}, {8}, 10), Error);
  EXPECT_THROW(make_model({}, {0}, 10), Error);
  const auto model = make_model({}, {8}, 2);
  EXPECT_THROW(model->outputs(at::zeros({18}), at::zeros({5, 7})), Error);
  EXPECT_THROW(model->outputs(at::zeros({17}), at::zeros({5, 8})), Error);
  EXPECT_THROW(model->initial("ones", draw(0), at::kFloat), Error);
}

TEST(Model, IsReadFromAConfiguration) {
  Config config = Config::parse("model = 'mlp'\nhidden = [3, 2]\nactivation = 'relu'\n", "c.toml");
  Section section = config.root();
  ModelOptions options;
  read(section, options);
  section.finish();
  EXPECT_EQ(options.kind, "mlp");
  EXPECT_EQ(options.hidden, (std::vector<int64_t>{3, 2}));
  EXPECT_EQ(options.activation, "relu");
  Config wrong = Config::parse("model = 'mlp'\nhidden = [-3]\n", "c.toml");
  Section wrong_section = wrong.root();
  EXPECT_THROW(read(wrong_section, options), Error);
}

}  // namespace
}  // namespace bilevel::model_test
