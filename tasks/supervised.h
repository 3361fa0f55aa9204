#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "bilevel/core/stream.h"
#include "bilevel/problem/loss.h"
#include "bilevel/problem/model.h"
#include "bilevel/problem/problem.h"

namespace bilevel {

class Gram;
class Section;
struct SpreadMap;

/// One part of x.
struct Hyperparameter {
  enum class Kind { kSampleWeight, kSourceWeight, kL2, kL1, kStepSize, kMomentum, kWeightDecay };  // the last three: the rule's
  /// What has a value of its own: of penalties all but steps, of the rule's hyperparameters one, layer or step.
  enum class Per { kOne, kFeature, kClass, kLayer, kStep };
  enum class Map { kIdentity, kSigmoid, kSoftplus, kExp };  // from x to what it stands for; "log" says that x is the logarithm

  Kind kind = Kind::kSampleWeight;
  Map map = Map::kSigmoid;
  at::Tensor init = {};  // x, not what it is mapped to: a scalar or the whole part; undefined: 0
  Constraint constraint = {};
  Per per = Per::kOne;
  bool bias = false;   // l2, l1: biases are penalised too
  int64_t window = 1;  // per step: so many steps in a row share one value

  static const std::vector<std::string>& kinds();  // as in a configuration
  std::string name() const;
};

struct SupervisedOptions {
  ModelOptions model;
  std::string loss = "softmax";                 // "squared" | "logistic" | "softmax"
  at::ScalarType dtype = at::kFloat;            // of x and y
  std::vector<Hyperparameter> hyperparameters;  // x is their concatenation, in this order
  double l2 = 0;                                // fixed: inner += ½ λ ‖w‖²
  bool l2_bias = false;                         // fixed: biases are penalised too
  double l1 = 0;                                // fixed: inner += λ ‖w‖₁, without the biases
  int64_t steps = 100;                          // T of the inner rule, for hyperparameters per step
  std::string init;           // y₀: "zeros" | "random" | a .npy file; empty: zeros for a linear model, else random
  int64_t seed = 0;           // of a random y₀
  std::string sample_weight;  // fixed: a .npy file of n weights; empty: 1
  int64_t outputs = 0;        // C; 0: as the labels of all the data say
  c10::Device device = c10::Device(c10::kCPU);

  std::vector<std::string> violations() const;
};

/// Reads [problem], [problem.hyperparameters], [problem.fixed], `init` of [inner] and `seed` of [run] from the configuration's
/// root.
void read(Section& root, SupervisedOptions& options);

struct Samples {
  at::Tensor features;  // [n, …], floating
  at::Tensor labels;    // [n] (or [n, C] for squared)
};

struct SupervisedData {
  Samples inner, outer;
  Samples test;               // undefined tensors: none; reported only
  at::Tensor sources;         // int64 [n] of the inner samples, 0…K−1; needed by source_weight
  int64_t source_count = 0;   // K; 0: the largest source + 1
  at::Tensor sample_weights;  // [n], fixed; undefined: as the options say
  std::shared_ptr<const Gram>
      gram;  // of features like the inner ones, to share between problems; none: made when it is asked for
};

/// Learning on [data.inner], judged on [data.outer]:
///
///   g(x, y) = (1/n) Σ_i w_i loss_i(y) + ½ Σ_j λ_j ‖y_j‖² + Σ_j κ_j ‖y_j‖₁,   w = σ(x) or fixed or 1,   λ, κ = exp(x) or fixed
///   f(x, y) = the mean loss on the outer samples
///
/// Sample and source weights multiply. n is the number of samples (of the batch), not Σ w. `inner_loss` leaves the l1 penalty
/// out, for it is not smooth; `inner_constraints` tells it to solvers that can. Learned step sizes, momenta and weight decays go
/// to the update rule, one for all, for each layer or for each window of steps. `l2` and `l1` per feature have one strength for
/// each input of a linear model, in the order of the features, per class one for each of its outputs, per layer one for each
/// layer of any model; with `bias` the biases belong to their class or layer, and per feature they have one strength more, the
/// last.
class SupervisedProblem : public Problem {
 public:
  /// Throws Error where options and data do not fit each other.
  SupervisedProblem(SupervisedOptions options, SupervisedData data);
  ~SupervisedProblem() override;

  const Layout& outer_layout() const override { return outer_layout_; }
  const Layout& inner_layout() const override { return model_->layout(); }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;

  bool has_outer_sample_losses() const override { return true; }
  at::Tensor outer_sample_losses(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;

  at::Tensor initial_outer() const override { return x0_; }
  at::Tensor initial_inner(const at::Tensor& x, int64_t slice) const override;
  int64_t inner_samples() const override { return inner_.n; }
  int64_t outer_samples() const override { return outer_.n; }
  std::vector<std::string> outer_parts_of_samples() const override;  // sample_weight

  RuleHyperparameters rule_hyperparameters(const at::Tensor& x, int64_t t) const override;
  bool has_rule_hyperparameters() const override { return step_size_ >= 0 || momentum_ >= 0 || weight_decay_ >= 0; }

  bool has_inner_constraints() const override { return l1_ >= 0 || options_.l1 > 0; }
  InnerConstraints inner_constraints(const at::Tensor& x) const override;  // the l1 penalty

  bool has_outputs() const override { return true; }
  at::Tensor inner_outputs(const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                   const Batch& batch) const override;

  bool has_outer_outputs() const override { return true; }
  at::Tensor outer_outputs(const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                   const Batch& batch) const override;
  std::optional<OutputLayer> output_layer() const override;
  at::Tensor inner_features(const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_features(const at::Tensor& y, const Batch& batch) const override;

  /// For squared losses, of normal targets with a variance of one.
  bool has_inner_likelihood() const override { return true; }
  Likelihood inner_likelihood(const at::Tensor& x, const Batch& batch) const override;

  /// Of a linear model, for the native oracle.
  const LinearForm* inner_linear_form() const override { return inner_form_.get(); }
  const LinearForm* outer_linear_form() const override { return outer_form_.get(); }

  /// The smallest ridge of a linear model all of whose weights are penalised.
  double inner_strong_convexity(const at::Tensor& x) const override;

  /// Of a linear model: the Gram matrix of the features, scaled to the curvature of the loss at even odds.
  Preconditioner inner_preconditioner(const at::Tensor& x) const override;

  std::vector<Constraint> outer_constraints() const override;
  /// outer_accuracy (squared: outer_mse) and, with test data, test_loss and test_accuracy (test_mse).
  std::map<std::string, double> metrics(const at::Tensor& x, const at::Tensor& y) const override;

  const SupervisedOptions& options() const { return options_; }
  const Model& model() const { return *model_; }
  const Loss& loss() const { return loss_; }
  std::vector<int64_t> sample_shape() const { return inner_.features.sizes().slice(1).vec(); }

  // For reports; without a graph.
  /// What each element of x stands for: weights, strengths, the step size.
  at::Tensor values_of(const at::Tensor& x) const;
  at::Tensor inner_losses(const at::Tensor& y) const;                   // [n], unweighted
  at::Tensor inner_logits(const at::Tensor& y) const;                   // [C, n]
  at::Tensor outer_logits(const at::Tensor& y) const;                   // [C, n]
  const at::Tensor& outer_features() const { return outer_.features; }  // [n, …]
  const at::Tensor& outer_targets() const { return outer_.targets; }    // [·, n]

 private:
  struct Prepared {
    at::Tensor features;  // [n, …]
    at::Tensor targets;   // [·, n]
    int64_t n = 0;
  };

  Prepared prepare(const Samples& samples, const std::string& name) const;
  void take_sources(const SupervisedData& data);
  void take_fixed(const SupervisedData& data);
  std::vector<int64_t> part_shape(const Hyperparameter& hyperparameter) const;
  at::Tensor logits(const Prepared& prepared, const at::Tensor& y, const Batch& batch) const;
  at::Tensor losses(const Prepared& prepared, const at::Tensor& logits, const Batch& batch) const;
  std::vector<at::Tensor> parts_of(const at::Tensor& x) const;
  // Undefined where there is nothing to multiply or to add.
  at::Tensor weights(const std::vector<at::Tensor>& parts, const Batch& batch) const;
  at::Tensor regulariser(const std::vector<at::Tensor>& parts, const at::Tensor& y) const;
  at::Tensor energies(const Hyperparameter& l2, const at::Tensor& y) const;
  SpreadMap strengths() const;
  SpreadMap map_of(int64_t part) const;
  void offer_linear_forms();

  SupervisedOptions options_;
  Loss loss_;
  Prepared inner_, outer_, test_;
  std::unique_ptr<Model> model_;
  Layout outer_layout_;
  at::Tensor x0_, y0_;  // y0_: from a file
  at::Tensor sources_;  // int64 [n]
  int64_t source_count_ = 0;
  at::Tensor fixed_weights_;  // [n]
  mutable std::shared_ptr<const Gram> gram_;
  // Which element of its part of x belongs to an element of y, and whether any does.
  struct Groups {
    at::Tensor index;   // int64 [dy]
    at::Tensor member;  // [dy], 1 or 0; undefined: all are
  };
  Groups groups(Hyperparameter::Per per, bool bias) const;
  std::map<int64_t, Groups> groups_;  // of the hyperparameters that are spread over y, by their parts of x
  at::Tensor penalised_;              // [dy], 1 for weights, 0 for biases; undefined where they are penalised too
  std::unique_ptr<LinearForm> inner_form_, outer_form_;  // of a linear model
  // Their parts of x; −1: not learned.
  int64_t sample_weight_ = -1, source_weight_ = -1, l2_ = -1, l1_ = -1, step_size_ = -1, momentum_ = -1, weight_decay_ = -1;
};

}  // namespace bilevel
