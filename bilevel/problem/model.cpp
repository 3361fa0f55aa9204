#include "bilevel/problem/model.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

#include "bilevel/core/config.h"
#include "bilevel/core/error.h"

namespace bilevel {

namespace {

const std::vector<std::string> kKinds = {"linear", "mlp", "cnn"};
const std::vector<std::string> kActivations = {"tanh", "relu"};

int64_t product(const std::vector<int64_t>& shape) {
  int64_t size = 1;
  for (const int64_t extent : shape) size *= extent;
  return size;
}

at::Tensor activate(const at::Tensor& z, bool relu) { return relu ? z.relu() : z.tanh(); }

// z = W hᵀ + b, [out, n], of rows h [n, in] given transposed.
at::Tensor affine(const std::vector<at::Tensor>& parts, const Model::Layer& layer, const at::Tensor& h_transposed) {
  const at::Tensor& W = parts[layer.weight];
  return layer.bias < 0 ? W.mm(h_transposed) : at::addmm(parts[layer.bias].unsqueeze(1), W, h_transposed);
}

/// z = W x + b, or layers of it with an activation between them.
class Mlp final : public Model {
 public:
  Mlp(int64_t features, const std::vector<int64_t>& hidden, int64_t outputs, bool bias, bool relu)
      : Model(outputs), features_(features), relu_(relu) {
    int64_t width = features;
    for (size_t i = 0; i < hidden.size(); ++i) {
      add_layer(fmt::format("hidden{}", i), {hidden[i], width}, bias);
      width = hidden[i];
    }
    add_layer(hidden.empty() ? "linear" : "output", {outputs, width}, bias);
  }

  at::Tensor features_of(const std::vector<at::Tensor>& parts, const at::Tensor& X) const override {
    const at::Tensor rows = X.dim() == 2 ? X : X.flatten(1);
    require(rows.size(1) == features_, fmt::format("Model::outputs: expected {} features for each sample, got shape [{}].",
                                                   features_, fmt::join(X.sizes(), ", ")));
    at::Tensor h = rows.t();
    for (size_t i = 0; i + 1 < layers().size(); ++i) h = activate(affine(parts, layers()[i], h), relu_);
    return h;
  }

 private:
  int64_t features_;
  bool relu_;
};

/// Convolutions with activation and mean pooling, then a linear layer. The pooling takes the mean, which is smooth.
class Cnn final : public Model {
 public:
  Cnn(const std::vector<int64_t>& image, const ModelOptions& options, int64_t outputs)
      : Model(outputs),
        image_(image),
        relu_(options.activation == "relu"),
        padding_(options.kernel / 2),
        stride_(options.stride) {
    int64_t channels = image[0], height = image[1], width = image[2];
    for (size_t i = 0; i < options.channels.size(); ++i) {
      require(height >= 2 && width >= 2, fmt::format("make_model: images of {}×{} are too small for {} poolings by 2.", image[1],
                                                     image[2], options.channels.size()));
      add_layer(fmt::format("conv{}", i), {options.channels[i], channels, options.kernel, options.kernel}, options.bias);
      channels = options.channels[i];
      height = (height + stride_ - 1) / 2;  // pooling drops an odd last line, a stride keeps it
      width = (width + stride_ - 1) / 2;
    }
    add_layer("output", {outputs, channels * height * width}, options.bias);
  }

  at::Tensor features_of(const std::vector<at::Tensor>& parts, const at::Tensor& X) const override {
    require(X.dim() > 0 && X.numel() == X.size(0) * product(image_),
            fmt::format("Model::outputs: expected images [{}] for each sample, got shape [{}].", fmt::join(image_, ", "),
                        fmt::join(X.sizes(), ", ")));
    at::Tensor h = X.view({X.size(0), image_[0], image_[1], image_[2]});
    for (size_t i = 0; i + 1 < layers().size(); ++i) {
      const Layer& layer = layers()[i];
      h = at::conv2d(h, parts[layer.weight], layer.bias < 0 ? at::Tensor() : parts[layer.bias], stride_, padding_);
      h = activate(h, relu_);
      if (stride_ == 1) h = at::avg_pool2d(h, 2);
    }
    return h.flatten(1).t();
  }

 private:
  std::vector<int64_t> image_;  // [channels, height, width]
  bool relu_;
  int64_t padding_, stride_;
};

}  // namespace

std::vector<std::string> ModelOptions::violations() const {
  std::vector<std::string> out;
  const auto positive = [&](const char* name, const std::vector<int64_t>& sizes) {
    if (sizes.empty() || std::any_of(sizes.begin(), sizes.end(), [](int64_t size) { return size < 1; })) {
      out.push_back(fmt::format("{} must hold positive sizes, got [{}]", name, fmt::join(sizes, ", ")));
    }
  };
  if (std::find(kKinds.begin(), kKinds.end(), kind) == kKinds.end()) {
    out.push_back(fmt::format("model \"{}\" is not known.{}", kind, suggestion(kind, kKinds)));
  }
  if (std::find(kActivations.begin(), kActivations.end(), activation) == kActivations.end()) {
    out.push_back(fmt::format("activation \"{}\" is not known.{}", activation, suggestion(activation, kActivations)));
  }
  if (kind == "mlp") positive("hidden", hidden);
  if (kind == "cnn") {
    positive("channels", channels);
    if (kernel < 1 || kernel % 2 == 0) out.push_back(fmt::format("kernel must be odd and positive, got {}", kernel));
    if (stride != 1 && stride != 2) out.push_back(fmt::format("stride must be 1 or 2, got {}", stride));
  }
  return out;
}

void read(Section& section, ModelOptions& options) {
  section.read_choice("model", options.kind, kKinds);
  section.read("bias", options.bias);
  // A key of another model is accepted where it is given, so that `--set problem.model=…` needs no other change.
  const auto belongs = [&](const char* key, bool here) { return here || section.has(key); };
  const bool mlp = options.kind == "mlp", cnn = options.kind == "cnn";
  if (belongs("hidden", mlp)) section.read("hidden", options.hidden);
  if (belongs("channels", cnn)) section.read("channels", options.channels);
  if (belongs("kernel", cnn)) section.read("kernel", options.kernel);
  if (belongs("stride", cnn)) section.read("stride", options.stride);
  if (belongs("activation", mlp || cnn)) section.read_choice("activation", options.activation, kActivations);
  section.check(options.violations());
}

at::Tensor Model::outputs(const at::Tensor& y, const at::Tensor& X) const {
  const std::vector<at::Tensor> parts = layout_.split(y);
  return affine(parts, layers_.back(), features_of(parts, X));
}

void Model::add_layer(const std::string& name, const std::vector<int64_t>& weight_shape, bool bias) {
  Layer layer;
  layer.name = name;
  layer.weight = static_cast<int64_t>(layout_.parts().size());
  layout_.add(name + ".weight", weight_shape);
  if (bias) {
    layer.bias = layer.weight + 1;
    layout_.add(name + ".bias", {weight_shape[0]});
  }
  layer.fan_in = product(weight_shape) / weight_shape[0];
  layers_.push_back(std::move(layer));
}

at::Tensor Model::initial(const std::string& kind, Draw draw, at::ScalarType dtype) const {
  if (kind == "zeros") return at::zeros({layout_.size()}, dtype);
  require(kind == "random",
          fmt::format("Model::initial: the kind \"{}\" is not known.{}", kind, suggestion(kind, {"zeros", "random"})));
  at::Tensor y = at::zeros({layout_.size()}, at::kDouble);
  for (const Layer& layer : layers_) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(layer.fan_in));
    for (const int64_t index : {layer.weight, layer.bias}) {
      if (index < 0) continue;
      const Part& part = layout_.parts()[index];
      y.narrow(0, part.offset, part.size).copy_(draw.uniform({part.size}).mul_(2.0 * bound).sub_(bound));
    }
  }
  return y.to(dtype);
}

std::unique_ptr<Model> make_model(const ModelOptions& options, const std::vector<int64_t>& sample_shape, int64_t outputs) {
  const std::vector<std::string> violations = options.violations();
  require(violations.empty(), fmt::format("make_model: {}.", fmt::join(violations, "; ")));
  require(outputs >= 1, fmt::format("make_model: outputs must be positive, got {}.", outputs));
  const int64_t features = product(sample_shape);
  require(features >= 1, fmt::format("make_model: samples of shape [{}] have no features.", fmt::join(sample_shape, ", ")));
  if (options.kind == "cnn") {
    std::vector<int64_t> image = sample_shape;
    if (image.size() == 2) image.insert(image.begin(), 1);
    require(image.size() == 3,
            fmt::format("make_model: model \"cnn\" needs images, [height, width] or [channels, height, width] for each "
                        "sample, and the samples have shape [{}]. Use \"linear\" or \"mlp\".",
                        fmt::join(sample_shape, ", ")));
    return std::make_unique<Cnn>(image, options, outputs);
  }
  const std::vector<int64_t> hidden = options.kind == "mlp" ? options.hidden : std::vector<int64_t>{};
  return std::make_unique<Mlp>(features, hidden, outputs, options.bias, options.activation == "relu");
}

}  // namespace bilevel
