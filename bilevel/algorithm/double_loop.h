#pragma once
#include <memory>
#include <string>
#include <vector>

#include "bilevel/algorithm/algorithm.h"
#include "bilevel/core/config.h"
#include "bilevel/hypergrad/certificate.h"
#include "bilevel/hypergrad/estimator.h"
#include "bilevel/hypergrad/spot_check.h"
#include "bilevel/inner/inner_solver.h"
#include "bilevel/outer/outer_optimizer.h"
#include "bilevel/problem/batch.h"

namespace bilevel {

/// Where the inner solve of an outer step begins.
enum class Start {
  kWarm,  // at the y of the outer step before: y*(x) moves little, so a few steps keep up with it
  kCold,  // at y₀(x), every time: what F_T of a study with fresh training runs means
};

struct DoubleLoopOptions {
  Start start = Start::kWarm;
  bool carry_rule_state =
      false;                     // momenta of the old x push y the wrong way; carry them where an outer step is a few inner steps
  bool warm_q = true;            // the linear solve begins at the q of the outer step before
  BatchPlan outer_batches = {};  // all samples
  BatchPlan hvp_batches = {};    // of the products with ∂y r in the estimator's linear solve, the same throughout one solve
  BatchPlan cross_batches = {};  // of its product with ∂x r: one drawn apart from the others keeps the product of both unbiased
  int64_t variance_samples = 1;  // N draws of these batches at an outer step: their mean moves x, their spread is reported
  uint64_t seed = 0;             // of losses that draw random numbers, and of the directions of spot checks
  int64_t bound_every =
      0;  // outer steps between two error bounds; 0: never. Runs of the command take 20: with 650 inner variables that
          // is 27 % more oracle calls where 100 inner steps are done, and 45 % with L-BFGS; 10 costs twice as much
  int64_t check_every = 0;  // outer steps between two spot checks, eight to thirty inner solves each; 0: never
  BoundOptions bound = {};
  SpotCheckOptions check = {};
  std::vector<std::string> violations() const;
};
/// Reads [inner] start, carry_state.
void read(Section& inner, DoubleLoopOptions& options);

/// How closely one hypergradient is looked at.
struct Examination {
  bool bound = false;   // an error bound, and the distance to F (hypergrad/certificate.h)
  bool check = false;   // slopes (hypergrad/spot_check.h)
  bool metrics = true;  // the problem's own, which no step depends on
};

/// The double loop: solve the inner problem at x_k, estimate dF/dx there, move x, project, repeat.
///
///     y_k ≈ y*(x_k);  d_k ≈ dF/dx(x_k);  x_{k+1} = P(x_k + outer step along d_k)
///
/// Where the problem has several inner problems, d_k, the losses and the metrics are means over them. Beside x, y and step the
/// State holds `inner_step` (batches and noise go on with it), `q` where the estimator has one, `inner.state…` where the rule's
/// state is carried, `estimator.s.j` where the estimator carries something on for inner problem s, and what the outer optimizer
/// keeps. y, q and the rule's state are [d], or [k, d] for k inner problems. `damping`, where present, is handed to the
/// estimator. A hypergradient that is not finite is reported and does not move x.
class DoubleLoop final : public Algorithm {
 public:
  /// Keeps a reference to `oracle`. Throws Error with the estimator's objections, and for a warm start where y₀ depends on x.
  DoubleLoop(const Oracle& oracle, std::shared_ptr<const InnerSolver> solver, std::shared_ptr<const Estimator> estimator,
             std::shared_ptr<const OuterOptimizer> outer, DoubleLoopOptions options);

  std::string_view name() const override { return "double-loop"; }
  State init() const override;
  Record step(State& state, int64_t n) const override;
  Record evaluate(State& state) const override;
  /// One step, which also gives the hypergradient that x was moved along.
  Record step(State& state, Hypergradient& taken, bool metrics = true) const;

  /// One inner solve and one estimate at the point that the state holds; `after`, where given, takes the state with the y and q
  /// that were found.
  Hypergradient hypergradient(const State& state, State* after = nullptr, const Examination& examination = {}) const;

  const InnerSolver& solver() const { return *solver_; }
  const Estimator& estimator() const { return *estimator_; }
  const DoubleLoopOptions& options() const { return options_; }

 private:
  struct Visit;
  Visit visit(State& state, const Examination& examination) const;
  Examination due(const State& state) const;
  void check(Hypergradient& mean, const at::Tensor& x, const std::vector<std::unique_ptr<EstimatorInput>>& inputs,
             int64_t step) const;
  Record describe(const State& state, const Visit& visit) const;

  const Oracle& oracle_;
  std::shared_ptr<const InnerSolver> solver_;
  std::shared_ptr<const Estimator> estimator_;
  std::shared_ptr<const OuterOptimizer> outer_;
  DoubleLoopOptions options_;
};

}  // namespace bilevel
