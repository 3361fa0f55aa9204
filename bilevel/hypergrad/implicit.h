#pragma once
#include <memory>

#include "bilevel/core/config.h"
#include "bilevel/hypergrad/estimator.h"
#include "bilevel/linear/linear_solver.h"

namespace bilevel {

struct ImplicitOptions {
  bool gauss_newton = false;  // positive semidefinite for convex losses of the outputs: for networks, whose Hessian is indefinite
  bool precondition = false;  // by Problem::inner_preconditioner, where the solver is cg: fewer products to the same residual
  /// WARN above this relative residual: the implicit part is then off by more than about a per cent, times the condition number.
  double residual_warning = 1e-2;
  /// WARN where ‖r‖ at y exceeds this fraction of ‖r‖ at the starting point y₀(x) and the inner solve had no tolerance to meet:
  /// the implicit function theorem speaks of r = 0 only, and with two digits of the way left the value is rarely good to one.
  double stationarity_warning = 1e-2;
  std::vector<std::string> violations() const;
};
/// Keys: curvature = "hessian" | "gauss-newton", precondition.
void read(Section& section, ImplicitOptions& options);

/// The derivative of F(x) = f(x, y*(x)) by the implicit function theorem (Bengio 2000; Pedregosa 2016; Rajeswaran et al. 2019):
///
///   ∂x f − (∂x r)ᵀ q,   (∂y r)ᵀ q = ∂y f,   r = ∂y g + w y,   w the inner rule's coupled weight decay
///
/// at the y that was reached. The linear system is solved by products with H, never formed (`dense` forms it, for small
/// problems). Neumann's and Richardson's scale is the inner step size unless given. BAD where the linear solve failed, as it does
/// on an indefinite H; the message names the remedies. Refuses inner solvers that stop elsewhere than at r = 0.
class Implicit final : public Estimator {
 public:
  explicit Implicit(std::unique_ptr<LinearSolver> solver, ImplicitOptions options = {});
  std::string_view name() const override { return "implicit"; }
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override;
  Hypergradient estimate(const EstimatorInput& in) const override;
  /// The same along a linearization at (x, y) and the inner batch, for several outer losses at one point.
  Hypergradient estimate(const EstimatorInput& in, Linearization& linearization) const;

 private:
  Operator curvature(const EstimatorInput& in, Linearization& linearization) const;
  double stationarity_at_start(const EstimatorInput& in) const;
  std::unique_ptr<LinearSolver> solver_;
  ImplicitOptions options_;
};

}  // namespace bilevel
