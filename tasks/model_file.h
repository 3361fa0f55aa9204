#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "bilevel/problem/dataset.h"
#include "bilevel/problem/model.h"

namespace bilevel {

class SupervisedProblem;

struct Prediction {
  at::Tensor labels;         // int64 [n]; undefined for the squared loss
  at::Tensor probabilities;  // [n, C], of each class; undefined for the squared loss
  at::Tensor values;         // [n, C]: the predictions of the squared loss; undefined for the others
};

/// A trained model, with all that applying it to new rows needs.
struct TrainedModel {
  ModelOptions model;
  std::string loss = "softmax";
  std::vector<int64_t> sample_shape;  // [d], or [channels, height, width] of an image
  int64_t outputs = 0;                // C
  at::Tensor weights;                 // y [dy]
  Encoding encoding;                  // of the training data; load_dataset(spec, &encoding) reads new rows by it

  /// Features [n, …] as encoded for training. Throws Error where they do not fit the model.
  Prediction predict(const at::Tensor& features) const;
};

/// What `problem` has learned when its inner solution is `y`.
TrainedModel trained_model(const SupervisedProblem& problem, const at::Tensor& y, const Encoding& encoding);

/// As a safetensors file: the weights under the names of their parts, the rest as JSON in its metadata, entry "model".
void save_model(const TrainedModel& model, const std::string& path);
/// Throws Error, naming the file, where it does not hold what save_model writes.
TrainedModel load_model(const std::string& path);

}  // namespace bilevel
