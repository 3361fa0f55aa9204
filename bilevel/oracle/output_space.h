#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// The samples of g and of f, and what the losses are multiplied by: their share of a whole; 0: they are not asked for.
struct OutputSamples {
  Batch inner, outer;
  double inner_weight = 1, outer_weight = 1;
};

/// g and f as functionals of the outputs z at one point (x, y): what a function-space method asks (Petrulionyte, Mairal & Arbel
/// 2024).
///
/// The adjoint is the function a over samples that minimises
///
///   E(a) = ½⟨a, ∂zz g a⟩ on the inner samples + ⟨a, ∂z f⟩ on the outer ones,   and moves x by   ∂x⟨∂z g, a⟩,
///
/// ⟨·,·⟩ the sum over samples and outputs of what the losses' own means have weighted. z, ∂z g and ∂z f stay as they are at y;
/// the Hessian ∂zz g is that of the loss by its outputs, and no product with ∂yy g is taken. a is either a network of the
/// architecture of the model's own, a = z(w) with weights w [dy], or linear in the features of the last layer, a = W φ + b with v
/// = (W, b) [P]. What g and f owe to W and b beside the outputs (a weight decay) then counts as for the model itself. All results
/// are sums over the samples, and carry no graph.
class OutputSpace {
 public:
  virtual ~OutputSpace() = default;
  virtual Gradients adjoint_loss(const at::Tensor& w) = 0;  // E(z(w)), and its gradient [dy] as y
  virtual at::Tensor cross(const at::Tensor& w) = 0;        // ∂x⟨∂z g, z(w)⟩ [dx]

  struct Quadratic {
    at::Tensor matrix;  // symmetric, [P, P]
    at::Tensor linear;  // [P]
  };
  virtual Quadratic head() = 0;                            // E(v) = ½ vᵀ matrix v + vᵀ linear
  virtual at::Tensor head_cross(const at::Tensor& v) = 0;  // ∂x of ⟨∂z g, W φ + b⟩ and of what is beside the outputs [dx]
  /// Σ over the inner samples of aᵀa, aᵀc and cᵀc for a = z(w) and c = W φ + b, [3]: how alike the two are.
  virtual at::Tensor compare(const at::Tensor& w, const at::Tensor& v) = 0;
};

/// The sum of several, each made for a call and dropped after it, so that one is held at a time.
class SumOfOutputSpaces final : public OutputSpace {
 public:
  using Maker = std::function<std::unique_ptr<OutputSpace>()>;
  explicit SumOfOutputSpaces(std::vector<Maker> makers) : makers_(std::move(makers)) {}
  Gradients adjoint_loss(const at::Tensor& w) override;
  at::Tensor cross(const at::Tensor& w) override;
  Quadratic head() override;
  at::Tensor head_cross(const at::Tensor& v) override;
  at::Tensor compare(const at::Tensor& w, const at::Tensor& v) override;

 private:
  const std::vector<Maker> makers_;
};

/// The output space of a problem by automatic differentiation.
std::unique_ptr<OutputSpace> autodiff_output_space(const Problem& problem, const at::Tensor& x, const at::Tensor& y,
                                                   const OutputSamples& samples);

}  // namespace bilevel
