#pragma once
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>

#include "bilevel/core/layout.h"
#include "bilevel/problem/batch.h"
#include "bilevel/problem/constraint.h"

namespace bilevel {

/// A bilevel problem: minimise over x  f(x, y*(x)),  y*(x) = argmin over y of g(x, y).
///
/// x [dx] and y [dy] are flat vectors whose named parts the layouts give. Losses are scalars built by differentiable operations
/// of x and y; they must be pure: the same (x, y, batch) gives the same loss, for a step may be replayed. What comes after the
/// four pure virtual functions is offered by choice, and asked for by what needs it.
class Problem {
 public:
  virtual ~Problem() = default;

  virtual const Layout& outer_layout() const = 0;
  virtual const Layout& inner_layout() const = 0;
  virtual at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const = 0;  // g
  virtual at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const = 0;  // f

  /// True where a loss draws from LibTorch's generators (dropout, sampling): it is then called with them seeded by `Batch::seed`.
  virtual bool draws_random_numbers() const { return false; }

  virtual at::Tensor initial_outer() const;                                    // x₀ [dx]; zeros, float32, unless given
  virtual at::Tensor initial_inner(const at::Tensor& x, int64_t slice) const;  // y₀(x) [dy]; zeros unless given
  /// True where y₀ depends on x (few-shot learning): unrolling then differentiates it too.
  virtual bool initial_inner_depends_on_outer() const { return false; }

  /// Inner problems that one outer step averages over (tasks); each is a `slice`.
  virtual int64_t inner_problems() const { return 1; }
  virtual int64_t inner_samples() const { return 0; }  // for batch plans; 0: the loss takes no batches
  virtual int64_t outer_samples() const { return 0; }

  /// h(x, t): the update rule's own hyperparameters that x determines at step t, by name ("lr", "momentum", …), each a scalar or
  /// [dy].
  using RuleHyperparameters = std::vector<std::pair<std::string, at::Tensor>>;
  virtual RuleHyperparameters rule_hyperparameters(const at::Tensor& x, int64_t t) const;
  virtual bool has_rule_hyperparameters() const { return false; }

  /// Outputs z(y), such as logits, and g as a function of them, for Gauss–Newton: g(x, y) = inner_loss_of_outputs(x, y, z(y)).
  virtual bool has_outputs() const { return false; }
  virtual at::Tensor inner_outputs(const at::Tensor& y, const Batch& batch) const;
  virtual at::Tensor inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                           const Batch& batch) const;

  /// v ↦ M⁻¹ v with M symmetric positive definite and near the inner Hessian at x for every y; empty where none is offered. It
  /// speeds up solvers, and changes no solution.
  using Preconditioner = std::function<at::Tensor(const at::Tensor&)>;
  virtual Preconditioner inner_preconditioner(const at::Tensor& x) const;

  /// One constraint for each part of x, or none at all.
  virtual std::vector<Constraint> outer_constraints() const { return {}; }

  /// Numbers to report beside the losses, such as test accuracy. Nothing is optimised by them.
  virtual std::map<std::string, double> metrics(const at::Tensor& x, const at::Tensor& y) const;
};

/// Throws Error where x or y do not fit the problem's layouts, naming `caller`.
void check_point(const Problem& problem, const at::Tensor& x, const at::Tensor& y, std::string_view caller);

}  // namespace bilevel
