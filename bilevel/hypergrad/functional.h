#pragma once
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/hypergrad/estimator.h"
#include "bilevel/oracle/output_space.h"

namespace bilevel {

struct FunctionalOptions {
  enum class Adjoint {
    kHead,     // W φ + b with the features of the model's own last layer, in closed form
    kNetwork,  // another network of the model's architecture, trained on from one outer step to the next
  };
  Adjoint adjoint = Adjoint::kHead;
  double damping =
      1e-6;  // of the head's normal equations: features are nearly always collinear, and this leaves the function as it is
  int64_t adjoint_steps = 20;  // of Adam at each outer step; an adjoint that lags behind misleads more than none
  double adjoint_lr = 1e-3;    // of Adam
  std::vector<std::string> violations() const;
};
/// Keys: adjoint = "head" | "network"; damping of the first, adjoint_steps and adjoint_lr of the second.
void read(Section& section, FunctionalOptions& options);

/// Functional implicit differentiation (Petrulionyte, Mairal & Arbel 2024): the inner variable is a function h of samples, given
/// by its outputs z, and so is the adjoint,
///
///   a = argmin ½⟨a, ∂zz g a⟩ + ⟨a, ∂z f⟩,   value = ∂x f + ∂x⟨∂z g, a⟩
///
/// with the inner product over the inner samples in the first term and over the outer ones in the second. Only the loss' Hessian
/// by the outputs is needed, which is convex where the inner problem by the weights is not: no product with ∂yy g is taken, and a
/// singular one does no harm. Its minimiser over all functions has ∂F for a model that can be any function; what is found is the
/// minimiser over heads, or what a network has reached. On a linear model the head is `implicit` with the exact solution.
///
/// The network's weights and Adam's moments go on from step to step (Hypergradient::carried). A weight decay of the loss or of
/// the rule, which is no function of outputs, counts for the head's own weights and for no others; parts of x that move the inner
/// problem by such alone are refused. BAD where the head's system cannot be solved, WARN where the network's adjoint is far from
/// the head's.
class Functional final : public Estimator {
 public:
  explicit Functional(FunctionalOptions options = {});
  std::string_view name() const override { return "functional"; }
  BatchRoles batch_roles() const override { return {.hvps = false, .cross_product = true}; }
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override;
  Hypergradient estimate(const EstimatorInput& in) const override;

 private:
  at::Tensor head(const EstimatorInput& in, OutputSpace& space, Hypergradient& h) const;
  Tensors train(const EstimatorInput& in, OutputSpace& space) const;
  void compare(const EstimatorInput& in, OutputSpace& space, const at::Tensor& w, Hypergradient& h) const;
  FunctionalOptions options_;
};

}  // namespace bilevel
