#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bilevel/core/cost.h"
#include "bilevel/core/status.h"
#include "bilevel/inner/inner_solver.h"
#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// Slopes of F along directions d, measured by solving the inner problem again at x ± h d, against what the hypergradient
/// predicts.
struct SpotCheck {
  struct Slope {
    std::string direction;                  // "gradient": d = value/‖value‖; "random": drawn anew for each outer step
    double predicted = 0;                   // dᵀ value
    double measured = 0;                    // extrapolated from the central differences at two step sizes
    double uncertainty = 0;                 // of `measured`: what the two step sizes and the tolerance of the solves leave open
    double step = 0, coarse = 0, fine = 0;  // h, and the differences at h and h/2
  };
  std::vector<Slope> slopes;
  double disagreement = 0;  // the greatest |predicted − measured| / ‖value‖
  bool conclusive = false;  // false: the slopes themselves cannot be trusted, and the check says nothing ("cannot be certified")
  Grade grade = Grade::kOk;
  std::string message;  // one sentence
};

/// How right a hypergradient is, always about the function that the estimator names.
struct Certificate {
  std::string differentiates;  // "F_T" for unrolling, "F" for implicit, …
  std::string bias;            // why the value is known not to be that derivative, but a way down along it; empty: it is
  double stationarity = 0;     // ‖r(x, y)‖₂ at the y that was reached
  std::optional<double> relative_residual;  // of the linear solve, where there is one
  std::optional<double> error_bound;        // absolute, 2-norm; none: no bound
  std::string bound_reason;                 // one sentence: what the bound rests on, or why there is none ("No bound: …")
  std::optional<double> curvature;          // μ > 0 with ∂y r ⪰ μ I, that the bound rests on
  std::optional<double> standard_error;     // of a stochastic estimator's value, 2-norm
  std::optional<double> adjoint_cosine;     // of a trained adjoint function with one in closed form, where both were made
  std::optional<double> distance_to_F;      // an estimate of ‖value − ∇F(x)‖₂, not a bound
  std::optional<SpotCheck> spot_check;      // where one was made
};

/// dF/dx = ∂x f − (∂x r)ᵀ q, and all that is known about it.
struct Hypergradient {
  at::Tensor value;                       // [dx]
  at::Tensor direct;                      // ∂x f [dx]; value − direct is the implicit part
  at::Tensor q;                           // ≈ +H⁻¹∂y f [dy] where the estimator has one; warm-starts the next solve
  Tensors carried;                        // what the estimator goes on from at the next outer step, of any shapes
  double inner_loss = 0, outer_loss = 0;  // at the y that was reached
  Grade grade = Grade::kOk;
  std::string message;  // one sentence
  Certificate certificate;
  Cost cost;
};

/// One inner problem at one x, solved as far as it was.
struct EstimatorInput {
  const Oracle& oracle;
  const InnerSolver& solver;
  at::Tensor x;
  InnerSolution& solution;  // its trajectory is used up
  Batch inner_batch;        // for products at the solution; full unless the problem is stochastic
  Batch outer_batch;
  at::Tensor q0;           // warm start of a linear solve; undefined: zero
  double damping = 0.0;    // δ on top of the solver's own, in the solve only: raised by a run that rolled back
  bool cold_start = true;  // y₀ was problem.initial_inner(x, slice) and not carried over: what it owes to x counts
  bool bound = false;      // work for an error bound and a distance to F: about as many products again as the estimate itself
  InnerStart start = {};   // where the solve began: estimators that solve again begin there
  std::optional<Batch> hvp_batch = {};    // of the products with ∂y r in a linear solve; none: inner_batch
  std::optional<Batch> cross_batch = {};  // of the product with ∂x r; none: inner_batch
  Tensors carried = {};  // Hypergradient::carried of the outer step before, for the same inner problem; empty: none

  const Batch& batch_of_hvps() const { return hvp_batch ? *hvp_batch : inner_batch; }
  const Batch& batch_of_cross_product() const { return cross_batch ? *cross_batch : inner_batch; }
};

/// Which products at the solution take batches of their own.
struct BatchRoles {
  bool hvps = false;           // EstimatorInput::hvp_batch
  bool cross_product = false;  // EstimatorInput::cross_batch
};

/// Turns a solved inner problem into a hypergradient.
class Estimator {
 public:
  virtual ~Estimator() = default;
  virtual std::string_view name() const = 0;
  /// What the inner solve must keep for `estimate`.
  virtual TrajectoryPolicy trajectory() const { return {}; }
  /// Who works along with the inner solve for `estimate`, to be put into its TrajectoryPolicy; null: nobody. Asked right before
  /// the solve with the input of the estimate, in which the solution and the numbers of steps are still to come. A caller that
  /// has no use for it leaves it out: `estimate` then does all of the work, with the same result.
  virtual std::shared_ptr<Follower> follower(const EstimatorInput& /*in*/) const { return nullptr; }
  virtual BatchRoles batch_roles() const { return {}; }
  /// Why this estimator cannot serve this problem and solver, one sentence each; empty: it can. Asked before the run.
  virtual std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const = 0;
  virtual Hypergradient estimate(const EstimatorInput& in) const = 0;
};

}  // namespace bilevel
