#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "bilevel/core/cost.h"
#include "tasks/supervised.h"

namespace bilevel {

struct TrainerOptions {
  ModelOptions model;
  std::string loss = "softmax";
  int64_t outputs = 0;    // C
  int64_t epochs = 12;    // of a network, on all rows; fewer rows get more epochs, so that each fit has as many updates
  int64_t updates = 400;  // of a network, at least: a few hundred rows are a handful of batches
  int64_t batch = 128;    // of a network
  double lr = 1e-3;       // of a network's Adam; falls to zero along the fit
  uint64_t seed = 0;
  std::function<void()> poll;  // called before each update of a network; may throw, to end the fit
};

/// Fits one model to one data set under many sample weights:  g(y) = Σ_i w_i loss_i(y) / Σ_i w_i + ½ ridge ‖y‖², biases free.
///
/// A linear model is solved to a stationarity by preconditioned L-BFGS; a network is trained by a fixed number of Adam updates
/// whose step falls linearly to zero. Rows of weight zero cost nothing.
class Trainer {
 public:
  /// Features [n, …] and labels [n].
  Trainer(TrainerOptions options, Samples data);

  struct Fit {
    at::Tensor y;
    double stationarity = 0;  // ‖∂y g‖₂
  };
  /// `weights` [n], not negative and not all zero; `start` undefined: the model's own start. `tolerance` is for linear models.
  Fit fit(const at::Tensor& weights, double ridge, const at::Tensor& start, double tolerance) const;

  /// [C, m] for rows of features, in pieces that fit the cache.
  at::Tensor logits(const at::Tensor& y, const at::Tensor& features) const;

  bool convex() const { return options_.model.kind == "linear"; }
  const Samples& data() const { return data_; }
  const TrainerOptions& options() const { return options_; }
  const std::shared_ptr<const Gram>& gram() const { return gram_; }
  const Model& model() const { return *model_; }
  const Cost& cost() const { return cost_; }

 private:
  TrainerOptions options_;
  Samples data_;
  std::shared_ptr<const Gram> gram_;  // of a linear model
  std::unique_ptr<Model> model_;
  mutable Cost cost_;
};

}  // namespace bilevel
