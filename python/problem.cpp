#include "python/problem.h"

#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <utility>

namespace py = pybind11;

namespace bilevel::python {

Layout layout_of(const py::handle& parts) {
  Layout layout;
  for (const auto& [name, shape] : parts.cast<std::vector<std::pair<std::string, std::vector<int64_t>>>>()) {
    layout.add(name, shape);
  }
  return layout;
}

namespace {

Constraint constraint_of(const py::handle& item) {
  const auto [kind, lower, upper] = item.cast<std::tuple<std::string, double, double>>();
  if (kind == "box") return Constraint::box(lower, upper);
  if (kind == "simplex") return Constraint::simplex();
  return {};
}

}  // namespace

PythonProblem::PythonProblem(py::object spec) : spec_(std::move(spec)) {
  outer_ = layout_of(spec_.attr("outer_parts"));
  inner_ = layout_of(spec_.attr("inner_parts"));
  x0_ = spec_.attr("x0").cast<at::Tensor>();
  for (const auto& item : spec_.attr("constraints")) constraints_.push_back(constraint_of(item));
  inner_samples_ = spec_.attr("inner_samples").cast<int64_t>();
  outer_samples_ = spec_.attr("outer_samples").cast<int64_t>();
  has_initial_ = spec_.attr("has_initial_inner").cast<bool>();
  if (!has_initial_) y0_ = spec_.attr("y0").cast<at::Tensor>();
  has_rule_hyperparameters_ = spec_.attr("has_rule_hyperparameters").cast<bool>();
  has_optimality_ = spec_.attr("has_optimality_map").cast<bool>();
  symmetric_ = spec_.attr("symmetric").cast<bool>();
  has_metrics_ = spec_.attr("has_metrics").cast<bool>();
  has_sample_losses_ = spec_.attr("has_sample_losses").cast<bool>();
  random_ = spec_.attr("random").cast<bool>();
  has_predict_ = spec_.attr("has_predict").cast<bool>();
}

PythonProblem::~PythonProblem() {
  const py::gil_scoped_acquire gil;
  spec_ = py::object();
}

at::Tensor PythonProblem::call(const char* method, const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const py::gil_scoped_acquire gil;
  const py::object samples = batch.full() ? py::none() : py::cast(batch.samples);
  return spec_.attr(method)(x, y, samples, batch.step).cast<at::Tensor>();
}

at::Tensor PythonProblem::inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return call("inner_loss", x, y, batch);
}

at::Tensor PythonProblem::outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return call("outer_loss", x, y, batch);
}

at::Tensor PythonProblem::outputs(const char* method, const at::Tensor& y, const Batch& batch) const {
  const py::gil_scoped_acquire gil;
  return spec_.attr(method)(y, batch.full() ? py::none() : py::cast(batch.samples)).cast<at::Tensor>();
}

at::Tensor PythonProblem::inner_outputs(const at::Tensor& y, const Batch& batch) const {
  return outputs("inner_outputs", y, batch);
}

at::Tensor PythonProblem::inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& /*y*/, const at::Tensor& z,
                                                const Batch& batch) const {
  return call("inner_loss_of_outputs", x, z, batch);
}

at::Tensor PythonProblem::outer_outputs(const at::Tensor& y, const Batch& batch) const {
  return outputs("outer_outputs", y, batch);
}

at::Tensor PythonProblem::outer_loss_of_outputs(const at::Tensor& x, const at::Tensor& /*y*/, const at::Tensor& z,
                                                const Batch& batch) const {
  return call("outer_loss_of_outputs", x, z, batch);
}

at::Tensor PythonProblem::outer_sample_losses(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return call("outer_sample_losses", x, y, batch);
}

at::Tensor PythonProblem::optimality_map(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  return call("optimality_map", x, y, batch);
}

at::Tensor PythonProblem::initial_inner(const at::Tensor& x, int64_t /*slice*/) const {
  if (!has_initial_) return y0_;
  const py::gil_scoped_acquire gil;
  return spec_.attr("initial_inner")(x).cast<at::Tensor>();
}

Problem::RuleHyperparameters PythonProblem::rule_hyperparameters(const at::Tensor& x, int64_t t) const {
  if (!has_rule_hyperparameters_) return {};
  const py::gil_scoped_acquire gil;
  return spec_.attr("rule_hyperparameters")(x, t).cast<RuleHyperparameters>();
}

std::map<std::string, double> PythonProblem::metrics(const at::Tensor& x, const at::Tensor& y) const {
  if (!has_metrics_) return {};
  const py::gil_scoped_acquire gil;
  return spec_.attr("metrics")(x, y).cast<std::map<std::string, double>>();
}

}  // namespace bilevel::python
