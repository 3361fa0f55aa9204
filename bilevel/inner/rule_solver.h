#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/inner/inner_solver.h"
#include "bilevel/inner/schedule.h"
#include "bilevel/problem/batch.h"

namespace bilevel {

struct RuleSolverOptions {
  std::optional<double> lr = std::nullopt;  // none: "auto", a safe step size found anew in each solve (inner/step_size.h)
  int64_t steps = 100;                      // T, or the most steps where there is a tolerance
  double tolerance = 0.0;                   // on the full-batch ‖r‖₂; 0: always T steps
  int64_t check_every = 10;                 // with minibatches, steps between two looks at the full batch
  int64_t batch = 0;                        // samples of a minibatch; 0: all. Read here, used by whoever makes the batch plan
  bool carry_state = false;       // a warm start goes on with the rule's momentum; otherwise each solve begins with a fresh state
  uint64_t seed = 0;              // of losses that draw random numbers
  ScheduleOptions schedule = {};  // of lr, over the steps of one solve
  std::vector<std::string> violations() const;
};
/// Keys: lr (a number or "auto"), steps, tolerance, check_every, batch, carry_state, and those of the schedule.
void read(Section& section, RuleSolverOptions& options);

/// An update rule run for T steps, or to a tolerance, on the full batch or on minibatches.
///
/// Step t takes the gradient at y_t on batch first_step + t, and the rule's hyperparameters h_t: the rule's own defaults, lr from
/// these options, and over both what Problem::rule_hyperparameters(x, t) gives, by name; the schedule acts on the lr that comes
/// out of it. A non-finite end is kNonFinite; an end where stationarity has grown tenfold and the loss by a tenth, or where plain
/// gradient descent swings to and fro above its starting loss (a step past 2/L), is kDiverged.
class RuleSolver final : public InnerSolver {
 public:
  RuleSolver(std::unique_ptr<UpdateRule> rule, RuleSolverOptions options, BatchPlan plan = BatchPlan::full());

  std::string_view name() const override { return rule_->name(); }
  InnerSolution solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                      const TrajectoryPolicy& policy) const override;
  /// lr of the last step. With lr = "auto" it is found at y₀(x), by an autodiff oracle; InnerSolution::step_size is what was
  /// used.
  at::Tensor step_size(const Problem& problem, const at::Tensor& x) const override;
  double coupled_weight_decay() const override { return rule_->coupled_weight_decay(); }
  bool stops_at_stationarity() const override { return rule_->stops_at_stationarity(); }
  /// The rule's, with the hyperparameters of the last step.
  at::Tensor residual(const Problem& problem, const at::Tensor& x, const at::Tensor& y,
                      const at::Tensor& gradient) const override;

  const UpdateRule& rule() const { return *rule_; }
  const RuleSolverOptions& options() const { return options_; }

  /// The batch of `step`, which counts across solves.
  Batch batch(int64_t step, int64_t slice) const;
  /// h_t of the solve's step t, each a scalar or [dy]. Throws Error for a name that the rule does not know.
  Tensors hyperparameters(const SolveContext& context, int64_t t) const;
  /// (∂h_t/∂x)ᵀ h̄ [dx].
  at::Tensor hyperparameters_vjp(const Problem& problem, const at::Tensor& x, int64_t t, const Tensors& h_bar) const;
  /// ∂h_t/∂x · u, in the shapes of h; zeros where x does not determine it.
  Tensors hyperparameters_jvp(const SolveContext& context, int64_t t, const at::Tensor& u) const;

  /// What step t depends on, at `point` with this gradient.
  RuleInput input(const SolveContext& context, const Point& point, int64_t t, at::Tensor gradient) const;
  /// Step t of a solve.
  Point advance(const SolveContext& context, const Point& point, int64_t t, const at::Tensor& gradient) const;
  /// The same with the gradient asked for again: the bits of the solve.
  Point replay(const SolveContext& context, const Point& point, int64_t t) const;

 private:
  double automatic_lr(const Oracle& oracle, const at::Tensor& x, int64_t slice, const at::Tensor& y) const;
  std::vector<std::pair<size_t, at::Tensor>> determined_by_outer(const Problem& problem, const at::Tensor& x, int64_t t) const;
  Tensors base_h(const at::Tensor& y, double lr) const;
  std::optional<size_t> lr_index() const;  // none: the rule has no lr

  std::unique_ptr<UpdateRule> rule_;
  RuleSolverOptions options_;
  BatchPlan plan_;
};

}  // namespace bilevel
