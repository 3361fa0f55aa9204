#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace bilevel {

using Tensors = std::vector<at::Tensor>;

/// What one step of a rule depends on.
struct RuleInput {
  at::Tensor y;                // [dy]
  Tensors state;               // s, one tensor for each slot
  at::Tensor gradient;         // ∂y g at y [dy]
  Tensors h;                   // the rule's hyperparameters in the order of `hyperparameters()`, each a scalar or [dy]
  int64_t step = 0;            // steps done before this one since the state was fresh; for bias correction
  bool h_is_constant = false;  // no derivative by h is wanted: `vjp` leaves RuleCotangent::h empty
};

struct RuleOutput {
  at::Tensor y;
  Tensors state;
};

/// The derivative of a scalar by everything that a step depends on.
struct RuleCotangent {
  at::Tensor y;
  Tensors state;
  at::Tensor gradient;
  Tensors h;  // in the shapes of RuleInput::h; empty where that is constant
};

/// One optimiser step Φ(y, s, ∂y g, h) → (y', s'), and its derivatives, apart from the loss.
///
/// Rules are maps of whole vectors. `step` is written in differentiable operations; `vjp` and `jvp` follow from it by autograd
/// (the graph spans this one step) unless a rule has them in closed form.
class UpdateRule {
 public:
  virtual ~UpdateRule() = default;
  virtual std::string_view name() const = 0;

  virtual int64_t slots() const = 0;  // tensors of state, each [dy]
  virtual std::vector<std::string> hyperparameters() const = 0;
  /// The hyperparameters' values from the options, in that order.
  virtual std::vector<double> defaults() const = 0;

  virtual RuleOutput step(const RuleInput& in) const = 0;
  virtual RuleCotangent vjp(const RuleInput& in, const at::Tensor& y_bar, const Tensors& state_bar) const;
  /// The derivative of (y', s') along `tangent`, whose fields hold the directions. They may be blocks of k directions, row by
  /// row: [k, dy], and [k, 1] for a scalar of h; what is no block counts for every row. The result then is a block.
  virtual RuleOutput jvp(const RuleInput& in, const RuleCotangent& tangent) const;

  /// w of a weight decay that is added to the gradient, from the options; 0 where x determines it.
  virtual double coupled_weight_decay() const { return 0.0; }
  /// False where no residual says where the rule stops (it depends on the way there): implicit estimators refuse it.
  virtual bool stops_at_stationarity() const { return true; }

  /// r, what the rule drives to zero, in differentiable operations of y, the gradient ∂y g and h: ∂y g itself, ∂y g + w y for a
  /// coupled weight decay, ∂y g + w (|∂y g| + ε) ⊙ y for AdamW. Everything that a rule at rest depends on is in it; lr never is.
  virtual at::Tensor residual(const at::Tensor& y, const at::Tensor& gradient, const Tensors& h) const;
  /// What an adaptive rule multiplies the direction by, apart from lr, as its state is after `steps` steps: Adam's 1/(√v̂ + ε)
  /// [dy]. It may precondition linear solves. Undefined: the rule does not adapt.
  virtual at::Tensor preconditioner(const Tensors& state, int64_t steps) const;
  /// True where the length of a step does not grow with the gradient's (Adam), so that no curvature bounds lr.
  virtual bool scale_free() const { return false; }
  /// Hyperparameters, other than lr, that the rule expects x to determine.
  virtual std::vector<std::string> learned() const { return {}; }

  /// s₀: zeros, unless a rule begins otherwise.
  virtual Tensors fresh_state(const at::Tensor& y) const;
  /// `defaults` as scalar tensors like y.
  Tensors default_h(const at::Tensor& y) const;
};

}  // namespace bilevel
