#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/hypergrad/estimator.h"
#include "bilevel/linear/linear_solver.h"
#include "bilevel/oracle/autodiff.h"
#include "python/problem.h"

namespace bilevel::python {

/// A problem whose outer loss is ⟨ȳ, y⟩, so that its hypergradient is the vector-Jacobian product that autograd asks for.
class Pullback final : public PythonProblem {
 public:
  using PythonProblem::PythonProblem;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  void set_cotangent(at::Tensor y_bar) { y_bar_ = std::move(y_bar); }

 private:
  at::Tensor y_bar_;
};

/// y_T(x) as a differentiable function: an inner solve forward, the unrolled estimator backward.
class Unroll {
 public:
  /// `options` holds [inner], and [hypergradient] for the memory policy.
  Unroll(pybind11::object spec, Config options);
  at::Tensor forward(const at::Tensor& x);
  /// (∂y_T/∂x)ᵀ ȳ [dx]. Asked for twice, it solves again: a trajectory is used up as it is gone through.
  at::Tensor backward(const at::Tensor& x, const at::Tensor& y_bar);

 private:
  Pullback problem_;
  AutodiffOracle oracle_;
  std::unique_ptr<InnerSolver> solver_;
  std::unique_ptr<Estimator> estimator_;
  InnerSolution solution_;
};

/// The derivative of a solution y(x) of r(x, y) = 0, found by whoever: products with dy/dx = −(∂y r)⁻¹ ∂x r and its transpose.
class ImplicitDerivative {
 public:
  ImplicitDerivative(pybind11::object spec, Config options, const std::string& solver);
  struct Product {
    at::Tensor value;
    LinearResult linear;
  };
  Product vjp(const at::Tensor& x, const at::Tensor& y, const at::Tensor& y_bar) const;
  Product jvp(const at::Tensor& x, const at::Tensor& y, const at::Tensor& x_dot) const;

 private:
  PythonProblem problem_;
  AutodiffOracle oracle_;
  std::unique_ptr<LinearSolver> solver_;
};

}  // namespace bilevel::python
