#pragma once
#include <memory>
#include <string>
#include <string_view>

#include "bilevel/core/status.h"
#include "bilevel/inner/trajectory.h"
#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// y ≈ y*(x), and how it was found.
struct InnerSolution {
  at::Tensor y;
  Tensors state;            // of the rule, for a warm start that carries it over
  int64_t state_steps = 0;  // steps since that state was fresh
  Status status = Status::kIterationLimit;
  std::string message;  // one sentence
  // At y and on all samples, but for TrajectoryPolicy::look_at_end, and for rules on minibatches without a tolerance, which are
  // judged by the batch of the step where they are shorter than `check_every`.
  double loss = 0;          // g(x, y)
  double stationarity = 0;  // ‖r(x, y)‖₂, r as InnerSolver::residual; under constraints that of inner/constraints.h
  double initial_stationarity = 0;
  int64_t steps = 0;
  at::Tensor previous;                     // y_{T−1}; y itself where no step was taken
  at::Tensor step_size;                    // lr of the last step, scalar or [dy]; undefined where the solver has none
  std::unique_ptr<Trajectory> trajectory;  // where it was asked for
};

struct InnerStart {
  at::Tensor y;
  Tensors state = {};  // empty: fresh
  int64_t state_steps = 0;
  int64_t first_step =
      0;  // batches and noise of this solve are those of steps first_step…; keeps the data moving on across outer steps
};

class InnerSolver {
 public:
  virtual ~InnerSolver() = default;
  virtual std::string_view name() const = 0;
  virtual InnerSolution solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                              const TrajectoryPolicy& policy) const = 0;
  /// The step size that one-step estimators take for the inverse Hessian, at x; throws Error where the solver has none.
  virtual at::Tensor step_size(const Problem& problem, const at::Tensor& x) const = 0;
  /// w of a weight decay that is added to the gradient, from the options; 0 where x determines it.
  virtual double coupled_weight_decay() const { return 0.0; }
  /// False where `residual` does not say where this solver stops: implicit estimators refuse it.
  virtual bool stops_at_stationarity() const { return true; }
  /// r(x, y), what this solver drives to zero where y moves freely, given ∂y g at (x, y). Differentiable operations of y, the
  /// gradient, and x, which may determine a rule's weight decay: dr = ∂r/∂y + (∂r/∂gradient) d(∂y g). `gradient` itself, the same
  /// tensor, where nothing beside g moves the optimum.
  virtual at::Tensor residual(const Problem& problem, const at::Tensor& x, const at::Tensor& y, const at::Tensor& gradient) const;
};

}  // namespace bilevel
