#pragma once
#include <optional>
#include <vector>

#include "tasks/reweight.h"
#include "tasks/trainer.h"

namespace bilevel {

/// Trains softmax regression as the rows of `reweight` are trained: trusted samples at weight 1, the same folds of them, the same
/// grid of ridges, the same stationarity. What is compared with its rows is then the weights, and nothing else.
class SoftmaxRows {
 public:
  SoftmaxRows(const ReweightData& data, uint64_t seed);

  struct Row {
    at::Tensor y;
    double accuracy = 0;  // on the test set
    double held_back_loss = 0, held_back_accuracy = 0, ridge = 0, stationarity = 0;
  };
  /// The noisy samples weighed by `weights` [n]; the ridge is the best on the held-back trusted samples.
  Row train(const at::Tensor& weights);

  /// [C, n]: of each noisy sample by a model that has not seen it.
  at::Tensor out_of_fold(const at::Tensor& weights, double ridge, int64_t folds);
  /// [C, n]: of each noisy sample by the model y.
  at::Tensor probabilities(const at::Tensor& y) const;
  at::Tensor ones() const;

 private:
  at::Tensor with_trusted(const at::Tensor& weights, int64_t without_fold = -1) const;

  const ReweightData& data_;
  uint64_t seed_;
  int64_t n_, m_;
  Trainer trainer_;
  std::vector<at::Tensor> folds_;  // of the trusted samples
  at::Tensor start_;
};

/// The mean over each source's samples, at each sample: [n] → [n].
at::Tensor mean_of_source(const at::Tensor& values, const Dataset& noisy);

}  // namespace bilevel
