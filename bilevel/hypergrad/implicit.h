#pragma once
#include <memory>

#include "bilevel/core/config.h"
#include "bilevel/hypergrad/estimator.h"
#include "bilevel/linear/linear_solver.h"

namespace bilevel {

/// What to do where the linear solver meets negative curvature.
enum class OnIndefinite {
  kStop,         // BAD, with the best iterate
  kDamp,         // raise the damping until the solve passes: from 1e-3 of the size of ∂y r, tenfold
  kGaussNewton,  // solve with Gauss–Newton's curvature, which is positive semidefinite
  kMinres,       // solve by MINRES, which needs no definiteness: right at a saddle, where F has no minimum to follow
};

struct ImplicitOptions {
  bool gauss_newton = false;  // positive semidefinite for convex losses of the outputs: for networks, whose Hessian is indefinite
  bool precondition = false;  // by Problem::inner_preconditioner, where the solver is cg: fewer products to the same residual
  bool precondition_by_rule = false;  // by the inner rule's 1/(√v + ε): free, and as good as its estimate of the curvature
  OnIndefinite on_indefinite = OnIndefinite::kStop;
  /// BAD where a coordinate of y is nearer than this to a kink of its constraints, relatively (hypergrad/active_set.h); 0: the
  /// dtype's, 1e-7 in double and 1e-4 in float. WARN where it is nearer than what the inner solve has left. Not read from TOML.
  double kink_tolerance = 0.0;
  /// WARN above this relative residual: the implicit part is then off by more than about a per cent, times the condition number.
  double residual_warning = 1e-2;
  /// WARN where ‖r‖ at y exceeds this fraction of ‖r‖ at the starting point y₀(x) and the inner solve had no tolerance to meet:
  /// the implicit function theorem speaks of r = 0 only, and with two digits of the way left the value is rarely good to one.
  double stationarity_warning = 1e-2;
  std::vector<std::string> violations() const;
};
/// Keys: curvature = "hessian" | "gauss-newton", precondition, on_indefinite = "stop" | "damp" | "gauss-newton" | "minres".
void read(Section& section, ImplicitOptions& options);

/// The derivative of F(x) = f(x, y*(x)) by the implicit function theorem (Bengio 2000; Pedregosa 2016; Rajeswaran et al. 2019):
///
///   ∂x f − (∂x r)ᵀ q,   (∂y r)ᵀ q = ∂y f
///
/// at the y that was reached, where r is what the inner solver drives to zero: ∂y g or the problem's own optimality map, with the
/// rule's weight decay (hypergrad/optimality.h), and on the active set where y is constrained (hypergrad/active_set.h). The
/// linear system is solved by products with ∂y r, never formed (`dense` forms it, for small problems). Neumann's and Richardson's
/// scale is the inner step size unless given. BAD where the linear solve failed, and where y*(x) has a kink; the message names
/// the remedies. Refuses inner solvers of which nothing says where they stop.
class Implicit final : public Estimator {
 public:
  /// `minres` is the solver for on_indefinite = kMinres, and not needed otherwise.
  explicit Implicit(std::unique_ptr<LinearSolver> solver, ImplicitOptions options = {},
                    std::unique_ptr<LinearSolver> minres = nullptr);
  std::string_view name() const override { return "implicit"; }
  BatchRoles batch_roles() const override { return {.hvps = true, .cross_product = true}; }
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override;
  Hypergradient estimate(const EstimatorInput& in) const override;
  /// The same along a linearization at (x, y) and the inner batch, for several outer losses at one point.
  Hypergradient estimate(const EstimatorInput& in, Linearization& linearization) const;

 private:
  struct Conditions;
  Conditions conditions(const EstimatorInput& in, Linearization& given) const;
  Operator matrix(const EstimatorInput& in, const Conditions& at, bool gauss_newton, double damping) const;
  LinearResult solve(const EstimatorInput& in, const Conditions& at, const at::Tensor& b, std::string& fallback) const;
  bool takes_fresh_batches(const EstimatorInput& in) const;
  double stationarity_at_start(const EstimatorInput& in) const;
  std::unique_ptr<LinearSolver> solver_, minres_;
  ImplicitOptions options_;
};

}  // namespace bilevel
