#pragma once
#include <memory>
#include <string>
#include <vector>

#include "bilevel/problem/loss.h"
#include "bilevel/problem/model.h"
#include "bilevel/problem/problem.h"
#include "tasks/supervised.h"

namespace bilevel {

/// Which strength each weight of one model has.
struct StrengthGroups {
  at::Tensor index;                // int64 [weights of a model], −1 for biases, which are free
  std::vector<std::string> names;  // of the strengths

  int64_t count() const { return static_cast<int64_t>(names.size()); }
};

/// `per` is one, class (a linear model's outputs), layer, feature or group: of an input of the first layer, and one more for each
/// further layer. `columns` int64 [d] are the groups of the inputs, named by `names`. Throws Error where they do not fit the
/// model.
StrengthGroups strength_groups(const Model& model, const std::string& per, const at::Tensor& columns,
                               const std::vector<std::string>& names);

struct CrossValidationOptions {
  ModelOptions model;
  std::string loss = "softmax";
  int64_t outputs = 0;  // C
  at::ScalarType dtype = at::kFloat;
  StrengthGroups groups;
  double start = 0.01;                  // every λ at first
  double lowest = 1e-8, highest = 1e4;  // of λ
  double width = 0;                     // τ of the prior on log λ around its mean; 0: none
  bool step_size = false;               // the update rule's step size is learned too
  double step_start = 0.1;
  uint64_t seed = 0;  // of the networks' first weights
};

/// K-fold cross-validation of one model with learned regularisation strengths, as one bilevel problem:
///
///   y = (y_1, …, y_K)      g = Σ_k [ (1/n_k) Σ_{i not in fold k} loss_i(y_k) + ½ Σ_j λ_j ‖(y_k)_j‖² ],   λ = exp(x)
///   f = (1/n) Σ_i loss_i(y_fold(i)) + (1/n) ½ Σ_j (x_j − x̄)²/τ²
///
/// The K models are solved together, so that each pass over the samples serves all of them; the Hessian is block-diagonal, and no
/// derivative mixes two folds. The second term of f is a Gaussian prior on the logarithms of the strengths around a common one,
/// whose own prior is flat. With `step_size` the last x is the logarithm of the step size.
///
/// The samples are kept in the order of their folds. Fold −1 (for all, K = 1) is a model of all samples, which validates none.
class CrossValidation final : public Problem {
 public:
  /// `fold_of` int64 [n], 0…K−1. `gram` of the features (a linear model's), or null. Throws Error where these do not fit.
  CrossValidation(CrossValidationOptions options, const Samples& data, const at::Tensor& fold_of,
                  std::shared_ptr<const Gram> gram = nullptr);
  ~CrossValidation() override;

  const Layout& outer_layout() const override { return outer_layout_; }
  const Layout& inner_layout() const override { return inner_layout_; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor initial_outer() const override;
  at::Tensor initial_inner(const at::Tensor& x, int64_t slice) const override;  // the same for each fold
  int64_t inner_samples() const override { return n_; }
  const LinearForm* inner_linear_form() const override { return inner_form_.get(); }
  const LinearForm* outer_linear_form() const override { return outer_form_.get(); }
  Preconditioner inner_preconditioner(const at::Tensor& x) const override;
  bool has_rule_hyperparameters() const override { return options_.step_size; }
  RuleHyperparameters rule_hyperparameters(const at::Tensor& x, int64_t t) const override;
  std::vector<Constraint> outer_constraints() const override;
  /// cv_loss, without the prior, and cv_accuracy (squared: cv_mse).
  std::map<std::string, double> metrics(const at::Tensor& x, const at::Tensor& y) const override;

  /// What the models lose on the folds that they have not seen.
  struct Validation {
    double loss = 0, loss_error = 0;    // over all samples; the standard error of the folds' means
    double score = 0, score_error = 0;  // accuracy, or mean squared error
  };
  Validation validate(const at::Tensor& y) const;

  int64_t folds() const { return folds_; }
  const Model& model() const { return *model_; }
  const Loss& loss() const { return loss_; }
  const CrossValidationOptions& options() const { return options_; }
  /// Of K models [K dy], the mean [dy]: where a fit to all samples begins.
  at::Tensor mean_model(const at::Tensor& y) const { return y.view({folds_, -1}).mean(0); }

 private:
  at::Tensor strengths(const at::Tensor& x) const;  // λ of each weight of one model [dy]
  at::Tensor prior(const at::Tensor& x) const;      // undefined: none
  at::Tensor held_out_logits(const at::Tensor& y, int64_t k) const;

  CrossValidationOptions options_;
  Loss loss_;
  std::unique_ptr<Model> model_;
  Layout outer_layout_, inner_layout_;
  int64_t n_ = 0, folds_ = 1;
  at::Tensor features_, targets_;                      // in the order of the folds
  std::vector<std::pair<int64_t, int64_t>> held_out_;  // of each fold: its first sample and their number
  at::Tensor train_weights_, held_weights_;            // [K, n]
  at::Tensor strength_index_;                          // int64 [dy], that of no strength is the number of strengths
  mutable std::shared_ptr<const Gram> gram_;
  mutable Preconditioner preconditioner_;  // at the x where it was last asked for: the inner and the linear solve both want it
  mutable at::Tensor preconditioned_at_;
  std::unique_ptr<LinearForm> inner_form_, outer_form_;  // of a linear model
};

/// Folds of n samples, int64 [n] in 0…K−1 at random, each class (where `labels` are such) spread evenly over them.
at::Tensor random_folds(const at::Tensor& labels, bool stratify, int64_t folds, uint64_t seed);

}  // namespace bilevel
