#pragma once
#include <pybind11/pybind11.h>

#include "bilevel/problem/problem.h"

namespace bilevel::python {

/// A layout from a list of (name, shape).
Layout layout_of(const pybind11::handle& parts);

/// A problem whose losses are Python functions.
///
/// `spec` is an instance of `bilevel._problem.Problem`, which knows about dictionaries, modules and data; here all is flat. Its
/// methods are called with the GIL, which this class takes itself. What they raise comes out as it was raised.
class PythonProblem : public Problem {
 public:
  explicit PythonProblem(pybind11::object spec);
  ~PythonProblem() override;

  const Layout& outer_layout() const override { return outer_; }
  const Layout& inner_layout() const override { return inner_; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor initial_outer() const override { return x0_; }
  at::Tensor initial_inner(const at::Tensor& x, int64_t slice) const override;
  bool initial_inner_depends_on_outer() const override { return has_initial_; }
  int64_t inner_samples() const override { return inner_samples_; }
  int64_t outer_samples() const override { return outer_samples_; }
  bool draws_random_numbers() const override { return random_; }
  RuleHyperparameters rule_hyperparameters(const at::Tensor& x, int64_t t) const override;
  bool has_rule_hyperparameters() const override { return has_rule_hyperparameters_; }
  bool has_optimality_map() const override { return has_optimality_; }
  at::Tensor optimality_map(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  bool optimality_map_is_symmetric() const override { return symmetric_; }
  bool has_outer_sample_losses() const override { return has_sample_losses_; }
  at::Tensor outer_sample_losses(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  bool has_outputs() const override { return has_predict_; }
  at::Tensor inner_outputs(const at::Tensor& y, const Batch& batch) const override;
  at::Tensor inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                   const Batch& batch) const override;
  bool has_outer_outputs() const override { return has_predict_; }
  at::Tensor outer_outputs(const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                   const Batch& batch) const override;
  std::vector<Constraint> outer_constraints() const override { return constraints_; }
  std::map<std::string, double> metrics(const at::Tensor& x, const at::Tensor& y) const override;

 private:
  at::Tensor call(const char* method, const at::Tensor& x, const at::Tensor& y, const Batch& batch) const;
  at::Tensor outputs(const char* method, const at::Tensor& y, const Batch& batch) const;

  pybind11::object spec_;
  Layout outer_, inner_;
  at::Tensor x0_, y0_;
  std::vector<Constraint> constraints_;
  int64_t inner_samples_ = 0, outer_samples_ = 0;
  bool has_initial_ = false, has_rule_hyperparameters_ = false, has_optimality_ = false, symmetric_ = false, has_metrics_ = false,
       has_sample_losses_ = false, random_ = false, has_predict_ = false;
};

}  // namespace bilevel::python
