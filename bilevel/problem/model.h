#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "bilevel/core/layout.h"
#include "bilevel/core/stream.h"

namespace bilevel {

class Section;

struct ModelOptions {
  std::string kind = "linear";               // "linear" | "mlp" | "cnn"
  bool bias = true;                          // in every layer
  std::vector<int64_t> hidden = {128};       // mlp: the widths of its hidden layers
  std::vector<int64_t> channels = {16, 32};  // cnn: one convolution, activation and 2×2 mean pooling for each
  int64_t kernel = 3;                        // cnn: odd, padded so that the extent stays
  int64_t stride = 1;                        // cnn: 2 convolves at every second place and pools nothing, a quarter of the work
  std::string activation =
      "tanh";  // or "relu"; tanh is smooth: the second derivatives of relu vanish, and products with ∂yy g then miss them

  std::vector<std::string> violations() const;
};

/// Reads `model`, `bias` and what belongs to that model.
void read(Section& section, ModelOptions& options);

/// A model of flat weights y: logits = outputs(y, X).
///
/// Weights of linear layers are class-major, [out, in] row by row, then the bias [out]; logits are [C, n], one column for each
/// sample: the same products run 2.4–4.4 times faster than with [in, out] and [n, C].
class Model {
 public:
  struct Layer {
    std::string name;
    int64_t weight = 0;  // index of its part in the layout
    int64_t bias = -1;   // −1: none
    int64_t fan_in = 0;
  };

  virtual ~Model() = default;

  const Layout& layout() const { return layout_; }
  const std::vector<Layer>& layers() const { return layers_; }  // from input to output
  int64_t output_size() const { return output_size_; }          // C

  /// Logits [C, n] of samples X [n, …], in differentiable operations of y [dy]. X is not copied.
  at::Tensor outputs(const at::Tensor& y, const at::Tensor& X) const;

  /// What the last layer is given, [p, n], likewise.
  at::Tensor features(const at::Tensor& y, const at::Tensor& X) const { return features_of(layout_.split(y), X); }

  /// y₀: "zeros", or "random" as PyTorch starts its layers, uniform on ±1/√fan_in. Throws Error for another kind.
  at::Tensor initial(const std::string& kind, Draw draw, at::ScalarType dtype) const;

 protected:
  explicit Model(int64_t output_size) : output_size_(output_size) {}
  virtual at::Tensor features_of(const std::vector<at::Tensor>& parts, const at::Tensor& X) const = 0;
  void add_layer(const std::string& name, const std::vector<int64_t>& weight_shape, bool bias);

 private:
  Layout layout_;
  std::vector<Layer> layers_;
  int64_t output_size_;
};

/// The model for samples of shape `sample_shape` (an image is [channels, height, width]; a cnn takes [height, width] too) and
/// `outputs` outputs. Throws Error where they do not fit.
std::unique_ptr<Model> make_model(const ModelOptions& options, const std::vector<int64_t>& sample_shape, int64_t outputs);

}  // namespace bilevel
