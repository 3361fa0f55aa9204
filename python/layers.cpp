#include "python/layers.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/inner/registry.h"
#include "bilevel/linear/registry.h"

namespace py = pybind11;

namespace bilevel::python {

at::Tensor Pullback::outer_loss(const at::Tensor& /*x*/, const at::Tensor& y, const Batch& /*batch*/) const {
  return y_bar_.defined() ? y_bar_.dot(y) : y.sum();  // undefined: what it costs is metered, and not what it is
}

Unroll::Unroll(py::object spec, Config options) : problem_(std::move(spec)), oracle_(problem_) {
  const py::gil_scoped_release no_gil;  // a budget is metered on a step
  Section root = options.root(), inner = root.section("inner"), hypergradient = root.section("hypergradient");
  solver_ = make_inner_solver(inner, problem_, problem_.initial_outer(), 0, {});
  estimator_ = make_estimator("unrolled", hypergradient);
  inner.finish();
  hypergradient.finish();
  for (const std::string& objection : estimator_->objections(problem_, *solver_)) throw Error("unroll: " + objection);
}

at::Tensor Unroll::forward(const at::Tensor& x) {
  const py::gil_scoped_release no_gil;
  InnerStart start;
  {
    const at::NoGradGuard no_grad;
    start.y = problem_.initial_inner(x, 0).detach();
  }
  TrajectoryPolicy policy = estimator_->trajectory();
  policy.look_at_end = false;
  solution_ = solver_->solve(oracle_, x, 0, start, policy);
  return solution_.y.detach();  // a handle of its own: autograd ties the returned one to the node that holds this object
}

at::Tensor Unroll::backward(const at::Tensor& x, const at::Tensor& y_bar) {
  if (!solution_.trajectory) forward(x);
  const py::gil_scoped_release no_gil;
  problem_.set_cotangent(y_bar);
  const EstimatorInput input{oracle_, *solver_, x, solution_, {}, {}, {}};
  const at::Tensor value = estimator_->estimate(input).value;
  solution_.trajectory.reset();
  return value;
}

ImplicitDerivative::ImplicitDerivative(py::object spec, Config options, const std::string& solver)
    : problem_(std::move(spec)), oracle_(problem_) {
  Section section = options.root().section("hypergradient");
  solver_ = make_linear_solver(solver, section);
  section.finish();
}

ImplicitDerivative::Product ImplicitDerivative::vjp(const at::Tensor& x, const at::Tensor& y, const at::Tensor& y_bar) const {
  const py::gil_scoped_release no_gil;
  const at::NoGradGuard no_grad;
  const auto at_solution = oracle_.linearize_inner(x, y, {});
  Operator transposed;
  transposed.dim = y.size(0);
  transposed.symmetric = at_solution->symmetric();
  transposed.apply = [&](const at::Tensor& v) { return at_solution->vjp(v).y; };
  transposed.apply_transposed = [&](const at::Tensor& v) { return at_solution->jvp_y(v); };
  Product product;
  product.linear = solver_->solve(transposed, y_bar, {});
  product.value = -at_solution->vjp(product.linear.solution).x;
  return product;
}

ImplicitDerivative::Product ImplicitDerivative::jvp(const at::Tensor& x, const at::Tensor& y, const at::Tensor& x_dot) const {
  const py::gil_scoped_release no_gil;
  const at::NoGradGuard no_grad;
  const auto at_solution = oracle_.linearize_inner(x, y, {});
  Operator jacobian;
  jacobian.dim = y.size(0);
  jacobian.symmetric = at_solution->symmetric();
  jacobian.apply = [&](const at::Tensor& v) { return at_solution->jvp_y(v); };
  jacobian.apply_transposed = [&](const at::Tensor& v) { return at_solution->vjp(v).y; };
  Product product;
  product.linear = solver_->solve(jacobian, -at_solution->jvp_x(x_dot), {});
  product.value = product.linear.solution;
  return product;
}

}  // namespace bilevel::python
