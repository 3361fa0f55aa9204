#include "tasks/model_file.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/core/safetensors.h"
#include "bilevel/core/stream.h"
#include "tasks/supervised.h"

namespace bilevel::model_file_test {
namespace {

Draw draw(int64_t t) { return Stream(3, "model file").at(t); }

class ModelFile : public testing::Test {
 protected:
  void SetUp() override {
    path_ = (std::filesystem::temp_directory_path() /
             fmt::format("bilevel_{}_{}.safetensors", testing::UnitTest::GetInstance()->current_test_info()->name(), ::getpid()))
                .string();
  }
  void TearDown() override { std::filesystem::remove(path_); }

  static TrainedModel linear() {
    TrainedModel m;
    m.sample_shape = {4};
    m.outputs = 3;
    m.weights = draw(0).normal({15});
    m.encoding.dimension = 4;
    m.encoding.class_names = {"cat", "dog", "ünknown \"quoted\""};
    return m;
  }

  std::string path_;
};

TEST_F(ModelFile, PredictsAfterLoadingAsBefore) {
  TrainedModel m = linear();
  const at::Tensor X = draw(1).normal({20, 4});
  save_model(m, path_);
  const TrainedModel loaded = load_model(path_);
  EXPECT_TRUE(at::equal(loaded.weights, m.weights));
  EXPECT_EQ(loaded.encoding.class_names, m.encoding.class_names);
  EXPECT_EQ(loaded.loss, "softmax");
  const Prediction p = loaded.predict(X);
  const at::Tensor W = m.weights.narrow(0, 0, 12).view({3, 4}), b = m.weights.narrow(0, 12, 3);
  const at::Tensor expected = at::linear(X, W, b).softmax(1);
  EXPECT_LT((p.probabilities - expected).norm().item<double>(), 1e-13 * expected.norm().item<double>());
  EXPECT_TRUE(at::equal(p.labels, expected.argmax(1)));
  EXPECT_THROW(loaded.predict(draw(1).normal({20, 5})), Error);
}

TEST_F(ModelFile, KeepsACnnOfImagesInFloat) {
  TrainedModel m;
  m.model = {.kind = "cnn", .bias = false, .channels = {3, 2}, .kernel = 5, .stride = 2, .activation = "relu"};
  m.sample_shape = {1, 8, 8};
  m.outputs = 10;
  const auto model = make_model(m.model, m.sample_shape, m.outputs);
  m.weights = model->initial("random", draw(2), at::kFloat);
  save_model(m, path_);
  const TrainedModel loaded = load_model(path_);
  const at::Tensor X = draw(3).normal({5, 64}, at::kFloat);
  const at::Tensor expected = model->outputs(m.weights, X.view({5, 1, 8, 8})).softmax(0).t();
  EXPECT_LT((loaded.predict(X).probabilities - expected).abs().max().item<double>(), 1e-6);
  EXPECT_EQ(read_safetensors(path_).tensors.at("conv1.weight").sizes(), at::IntArrayRef({2, 3, 5, 5}));
}

TEST_F(ModelFile, HoldsWhatAProblemLearned) {
  SupervisedData data;
  data.inner = {draw(0).normal({12, 4}), draw(1).normal({12})};
  data.outer = {draw(2).normal({7, 4}), draw(3).normal({7})};
  SupervisedOptions options;
  options.loss = "squared";
  options.dtype = at::kDouble;
  options.hyperparameters = {{.kind = Hyperparameter::Kind::kSampleWeight}};
  const SupervisedProblem problem(options, data);
  const at::Tensor y = draw(4).normal({5});
  save_model(trained_model(problem, y, {}), path_);
  const Prediction p = load_model(path_).predict(data.outer.features);
  const at::Tensor expected = data.outer.features.mv(y.narrow(0, 0, 4)) + y[4];
  EXPECT_LT((p.values.squeeze(1) - expected).norm().item<double>(), 1e-13 * expected.norm().item<double>());
  EXPECT_FALSE(p.labels.defined());
}

TEST_F(ModelFile, RefusesDamagedFiles) {
  EXPECT_THROW(load_model("/nonexistent/model.safetensors"), Error);
  save_model(linear(), path_);
  const SafeTensors good = read_safetensors(path_);
  const auto refuses = [&](const std::function<void(SafeTensors&)>& damage) {
    SafeTensors bad = good;
    damage(bad);
    write_safetensors(bad, path_);
    EXPECT_THROW(load_model(path_), Error);
  };
  refuses([](SafeTensors& s) { s.metadata.erase("format"); });
  refuses([](SafeTensors& s) { s.metadata["format"] = "bilevel-model-0"; });
  refuses([](SafeTensors& s) { s.metadata["model"] = "{"; });
  refuses([](SafeTensors& s) { s.metadata["model"] = "[]"; });
  refuses([](SafeTensors& s) { s.metadata["encoding"] = "{}"; });
  refuses([](SafeTensors& s) { s.tensors.erase("linear.bias"); });
  refuses([](SafeTensors& s) { s.tensors["other"] = at::zeros({2}); });
  refuses([](SafeTensors& s) { s.tensors["linear.weight"] = at::zeros({4, 3}, at::kDouble); });
  refuses([](SafeTensors& s) { s.tensors["linear.bias"] = at::zeros({3}, at::kLong); });
  refuses([](SafeTensors& s) {
    auto& text = s.metadata["model"];
    text.replace(text.find("\"outputs\":3"), 11, "\"outputs\":-3");
  });
  refuses([](SafeTensors& s) {
    auto& text = s.metadata["model"];
    text.replace(text.find("softmax"), 7, "hinge");
  });
  write_file(path_, read_file(path_).substr(0, 50));
  EXPECT_THROW(load_model(path_), Error);
}

}  // namespace
}  // namespace bilevel::model_file_test
