#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "bilevel/problem/problem.h"

/// Small problems whose answers are known from outside, for the tests of every folder, for `bilevel selftest`, and for whoever
/// checks an estimator or an algorithm of their own. Their data are functions of a seed. Each comes in any floating dtype.
namespace bilevel {

/// Layouts and initial points, which every problem here stores.
class TestProblem : public Problem {
 public:
  const Layout& outer_layout() const override { return outer_layout_; }
  const Layout& inner_layout() const override { return inner_layout_; }
  at::Tensor initial_outer() const override { return x0_; }
  at::Tensor initial_inner(const at::Tensor& x, int64_t slice) const override;

 protected:
  Layout outer_layout_, inner_layout_;
  at::Tensor x0_, y0_;
};

struct QuadraticOptions {
  int64_t outer = 5, inner = 8;
  double condition = 10.0;  // of A, whose largest eigenvalue is 1: a step size of 1 is safe
  double direct = 1.0;      // ‖∂x f‖ / ‖implicit part‖ at x₀: 1 shows an estimator that returns one of the two alone
  at::ScalarType dtype = at::kDouble;
  uint64_t seed = 0;
};

/// g = ½ yᵀA y − yᵀ(B x + c),  f = ½‖y − d‖² + ½ρ‖x‖².  Then y* = A⁻¹(B x + c) and ∇F = ρ x + BᵀA⁻¹(y* − d).
class QuadraticProblem final : public TestProblem {
 public:
  explicit QuadraticProblem(const QuadraticOptions& options = {});
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;

  at::Tensor solution(const at::Tensor& x) const;       // y*
  at::Tensor hypergradient(const at::Tensor& x) const;  // ∇F
  const at::Tensor& A() const { return A_; }
  const at::Tensor& B() const { return B_; }

 private:
  at::Tensor A_, B_, c_, d_;
  double rho_ = 0;
};

struct RidgeOptions {
  int64_t features = 6, inner_samples = 30, outer_samples = 20;
  at::ScalarType dtype = at::kDouble;
  uint64_t seed = 0;
};

/// One log-strength for each weight:  g = ½‖X y − t‖²/n + ½ Σ e^{xⱼ} yⱼ²,  f = ½‖X' y − t'‖²/m.
/// Then y* = (XᵀX/n + diag eˣ)⁻¹ Xᵀt/n and ∂F/∂xⱼ = −e^{xⱼ} y*ⱼ [H⁻¹ ∂y f]ⱼ.
class RidgeProblem final : public TestProblem {
 public:
  explicit RidgeProblem(const RidgeOptions& options = {});
  /// On given data: X [n, p], t [n], and the outer X' [m, p], t' [m].
  RidgeProblem(at::Tensor X, at::Tensor t, at::Tensor outer_X, at::Tensor outer_t);
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  int64_t inner_samples() const override { return X_.size(0); }
  int64_t outer_samples() const override { return outer_X_.size(0); }
  bool has_outputs() const override { return true; }
  at::Tensor inner_outputs(const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                   const Batch& batch) const override;
  bool has_outer_outputs() const override { return true; }
  at::Tensor outer_outputs(const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                   const Batch& batch) const override;
  std::optional<OutputLayer> output_layer() const override { return OutputLayer{"weight", ""}; }
  at::Tensor inner_features(const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_features(const at::Tensor& y, const Batch& batch) const override;
  bool has_inner_likelihood() const override { return true; }
  Likelihood inner_likelihood(const at::Tensor& x, const Batch& batch) const override;

  at::Tensor hessian(const at::Tensor& x) const;
  at::Tensor solution(const at::Tensor& x) const;
  at::Tensor hypergradient(const at::Tensor& x) const;

 private:
  void set_layouts();
  at::Tensor X_, t_, outer_X_, outer_t_;
};

struct LogisticWeightsOptions {
  int64_t features = 5, inner_samples = 24, outer_samples = 16;
  double ridge = 0.05;
  at::ScalarType dtype = at::kDouble;
  uint64_t seed = 0;
};

/// A weight σ(xᵢ) for each sample:  g = (1/n) Σ σ(xᵢ) ℓᵢ(y) + ½ ridge ‖y‖²,  f = mean ℓ' + 0.01‖x‖²/2, ℓ the logistic loss.
/// Then ∂F/∂xᵢ = 0.01 xᵢ − σ'(xᵢ)/n ∇ℓᵢ(y*)ᵀ H⁻¹ ∂y f.
class LogisticWeightsProblem final : public TestProblem {
 public:
  explicit LogisticWeightsProblem(const LogisticWeightsOptions& options = {});
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  int64_t inner_samples() const override { return X_.size(0); }
  int64_t outer_samples() const override { return outer_X_.size(0); }
  bool has_outputs() const override { return true; }
  at::Tensor inner_outputs(const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                   const Batch& batch) const override;
  bool has_outer_outputs() const override { return true; }
  at::Tensor outer_outputs(const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                   const Batch& batch) const override;
  std::optional<OutputLayer> output_layer() const override { return OutputLayer{"weight", ""}; }
  at::Tensor inner_features(const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_features(const at::Tensor& y, const Batch& batch) const override;
  bool has_inner_likelihood() const override { return true; }
  Likelihood inner_likelihood(const at::Tensor& x, const Batch& batch) const override;

  at::Tensor hessian(const at::Tensor& x, const at::Tensor& y) const;
  at::Tensor solution(const at::Tensor& x) const;  // by Newton's method
  /// The formula above at (x, y), exact at y = y*(x).
  at::Tensor hypergradient(const at::Tensor& x, const at::Tensor& y) const;

 private:
  at::Tensor X_, t_, outer_X_, outer_t_;
  double ridge_;
};

struct MlpOptions {
  int64_t features = 3, hidden = 6, inner_samples = 20, outer_samples = 15;
  at::ScalarType dtype = at::kDouble;
  uint64_t seed = 0;
};

/// A network of one tanh layer with a squared loss: nonconvex, its Hessian indefinite at the start. x holds a weight σ(xᵢ) for
/// each sample ("weights") and the logarithm of one ridge for each of the two layers ("ridge"); f has a direct term 0.01‖x‖².
class MlpProblem final : public TestProblem {
 public:
  explicit MlpProblem(const MlpOptions& options = {});
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  int64_t inner_samples() const override { return X_.size(0); }
  int64_t outer_samples() const override { return outer_X_.size(0); }
  bool has_outputs() const override { return true; }
  at::Tensor inner_outputs(const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                   const Batch& batch) const override;
  bool has_outer_outputs() const override { return true; }
  at::Tensor outer_outputs(const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                   const Batch& batch) const override;
  std::optional<OutputLayer> output_layer() const override { return OutputLayer{"output.weight", "output.bias"}; }
  at::Tensor inner_features(const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_features(const at::Tensor& y, const Batch& batch) const override;
  bool has_inner_likelihood() const override { return true; }
  Likelihood inner_likelihood(const at::Tensor& x, const Batch& batch) const override;

 private:
  at::Tensor hidden(const at::Tensor& y, const at::Tensor& X) const;  // [hidden, n]
  at::Tensor forward(const at::Tensor& y, const at::Tensor& X) const;
  at::Tensor X_, t_, outer_X_, outer_t_;
};

struct MamlOptions {
  double proximity = 0.0;  // ρ of ½ρ‖y − x‖² in the inner loss (iMAML); 0: x is the starting point alone
  at::ScalarType dtype = at::kDouble;
};

/// Four sinusoids to be fitted by a 1-8-8-1 tanh network from ten points each, starting from x: y₀ = x (MAML, Finn et al. 2017).
/// The inner loss of slice k is the mean squared error on its support points, the outer loss that on its query points.
class SinusoidMamlProblem final : public TestProblem {
 public:
  explicit SinusoidMamlProblem(const MamlOptions& options = {});
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor initial_inner(const at::Tensor& x, int64_t slice) const override {
    (void)slice;
    return x;
  }
  bool initial_inner_depends_on_outer() const override { return true; }
  int64_t inner_problems() const override { return 4; }

 private:
  at::Tensor error(const at::Tensor& y, const at::Tensor& inputs, int64_t slice) const;
  at::Tensor support_, query_;  // [10, 1]
  double proximity_;
};

/// A base problem with one or two parts more in x that feed the update rule alone: "lr", used at step t as lr/(1 + t/10), and
/// where asked for "momentum".
class LearnedRuleProblem final : public TestProblem {
 public:
  LearnedRuleProblem(const Problem& base, double lr, double momentum = -1.0);
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  bool has_rule_hyperparameters() const override { return true; }
  RuleHyperparameters rule_hyperparameters(const at::Tensor& x, int64_t t) const override;

 private:
  at::Tensor base_x(const at::Tensor& x) const;
  const Problem& base_;
};

}  // namespace bilevel
