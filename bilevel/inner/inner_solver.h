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
  std::string message;      // one sentence
  double loss = 0;          // g(x, y), full batch
  double stationarity = 0;  // ‖r(x, y)‖₂, full batch; r includes a coupled weight decay
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
  /// Shift w of the optimality map r = ∂y g + w y that this solver drives to zero.
  virtual double coupled_weight_decay() const { return 0.0; }
  virtual bool stops_at_stationarity() const { return true; }
};

}  // namespace bilevel
