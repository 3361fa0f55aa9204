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

struct LinearForm;
struct InnerConstraints;
struct Likelihood;

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

  /// The losses of the batch's outer samples one by one [n], whose mean is f, for telling which samples pull at x.
  virtual bool has_outer_sample_losses() const { return false; }
  virtual at::Tensor outer_sample_losses(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const;

  /// True where r(x, y) is given directly (a root, a fixed point, a KKT system) and not as the gradient of `inner_loss`, which is
  /// then not asked for; g is reported as ½‖r‖².
  virtual bool has_optimality_map() const { return false; }
  virtual at::Tensor optimality_map(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const;  // r [dy]
  virtual bool optimality_map_is_symmetric() const { return false; }  // ∂y r = (∂y r)ᵀ everywhere

  /// What keeps y from moving freely: bounds, equalities, an l1 penalty (problem/inner_constraints.h).
  virtual bool has_inner_constraints() const { return false; }
  virtual InnerConstraints inner_constraints(const at::Tensor& x) const;

  /// The forms of g and f as generalised linear models, for the native oracle (problem/linear_form.h); null: none.
  virtual const LinearForm* inner_linear_form() const { return nullptr; }
  virtual const LinearForm* outer_linear_form() const { return nullptr; }

  /// μ with ∂yy g(x, ·) ⪰ μ I everywhere, where one is known (the smallest ridge of a convex model): error bounds rest on it. 0:
  /// unknown.
  virtual double inner_strong_convexity(const at::Tensor& x) const;

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
  /// Names of the parts of x that have one entry (or one row, [n, …]) for each inner sample, which no other sample's inner loss
  /// depends on: processes that share the samples then keep these entries to themselves.
  virtual std::vector<std::string> outer_parts_of_samples() const { return {}; }

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

  /// The outputs of the same model on the outer samples, and f as a function of them. With the inner ones they make the problem
  /// one of functions: weights w ≠ y give another function of the same architecture.
  virtual bool has_outer_outputs() const { return false; }
  virtual at::Tensor outer_outputs(const at::Tensor& y, const Batch& batch) const;
  virtual at::Tensor outer_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& outputs,
                                           const Batch& batch) const;

  /// The last layer, where outputs are linear: z = W φ + b [C, n] (or [n], C = 1), one column for each sample, with features φ
  /// [p, n] that depend on neither W nor b. The loss of one sample's outputs depends on no other's.
  struct OutputLayer {
    std::string weight;  // the part of y that is W [C, p] (or [p])
    std::string bias;    // that is b [C]; empty: none
  };
  virtual std::optional<OutputLayer> output_layer() const { return std::nullopt; }
  virtual at::Tensor inner_features(const at::Tensor& y, const Batch& batch) const;
  virtual at::Tensor outer_features(const at::Tensor& y, const Batch& batch) const;

  /// g as a negative log-likelihood of outputs (problem/likelihood.h), for methods that build on the Fisher information. The
  /// outputs of one sample must depend on that sample alone.
  virtual bool has_inner_likelihood() const { return false; }
  virtual Likelihood inner_likelihood(const at::Tensor& x, const Batch& batch) const;
  /// Its z: the outputs above, unless x is in them (samples that are learned).
  virtual at::Tensor likelihood_outputs(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const;

  /// v ↦ M⁻¹ v with M symmetric positive definite and near the inner Hessian at x for every y; empty where none is offered. It
  /// speeds up solvers, and changes no solution.
  using Preconditioner = std::function<at::Tensor(const at::Tensor&)>;
  virtual Preconditioner inner_preconditioner(const at::Tensor& x) const;

  /// One constraint for each part of x, or none at all.
  virtual std::vector<Constraint> outer_constraints() const { return {}; }

  /// Numbers to report beside the losses, such as test accuracy. Nothing is optimised by them.
  virtual std::map<std::string, double> metrics(const at::Tensor& x, const at::Tensor& y) const;
};

/// Where in y the elements of W, row by row, and then those of b are, int64. Throws Error where the problem offers no output
/// layer.
at::Tensor output_layer_positions(const Problem& problem);

/// Throws Error where x or y do not fit the problem's layouts, naming `caller`.
void check_point(const Problem& problem, const at::Tensor& x, const at::Tensor& y, std::string_view caller);

}  // namespace bilevel
