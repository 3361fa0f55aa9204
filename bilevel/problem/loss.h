#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace bilevel {

/// A loss for each sample, of class-major logits z [C, n]:
///   squared   ½ Σ_c (z_c − y_c)², y any numbers, [n] or [n, C]
///   logistic  binary cross-entropy of σ(z), y in {0, 1}, C = 1
///   softmax   log Σ_c exp z_c − z_y, y in 0…C−1
class Loss {
 public:
  enum class Kind { kSquared, kLogistic, kSoftmax };
  static const std::vector<std::string>& names();

  /// By its name in a configuration. Throws Error for another.
  explicit Loss(const std::string& name);

  Kind kind() const { return kind_; }
  std::string name() const;
  bool classifies() const { return kind_ != Kind::kSquared; }

  /// C for these labels: 1, the columns of y, or the largest label + 1.
  int64_t output_size(const at::Tensor& labels) const;

  /// Labels in the form that `losses` takes, its last dimension that of the samples: softmax int64 [1, n], logistic ±1 [1, n],
  /// squared [C, n]. Throws Error for labels that do not fit, naming `what`.
  at::Tensor targets(const at::Tensor& labels, int64_t output_size, at::ScalarType dtype, const std::string& what) const;

  /// [n], in operations that can be differentiated twice and do not overflow.
  at::Tensor losses(const at::Tensor& logits, const at::Tensor& targets) const;

  /// [n, C]: probabilities of the classes (two columns for logistic), or the predictions themselves for squared.
  at::Tensor probabilities(const at::Tensor& logits) const;
  /// The most probable class, int64 [n]. Throws Error for squared.
  at::Tensor labels(const at::Tensor& logits) const;
  /// The part of the samples that is classified rightly, or the mean of (z − y)² for squared.
  double score(const at::Tensor& logits, const at::Tensor& targets) const;
  /// "accuracy" or "mse".
  std::string score_name() const { return classifies() ? "accuracy" : "mse"; }

 private:
  Kind kind_;
};

}  // namespace bilevel
