// (∂y r)ᵀ q = b,   b = ∂y f,   ∂y r = H + w I,   value = ∂x f − (∂x r)ᵀ q
//
// w y does not depend on x, so (∂x r)ᵀ q is that of ∂y g alone.
#include "bilevel/hypergrad/implicit.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/assembly.h"

namespace bilevel {
namespace {

std::string linear_failure(const LinearResult& linear, std::string_view solver, bool gauss_newton) {
  switch (linear.status) {
    case Status::kIndefinite:
      return fmt::format("The linear solve ({}) met negative curvature: {} Add damping{}, or solve the inner problem further.",
                         solver, linear.message,
                         gauss_newton ? "" : ", use curvature = \"gauss-newton\" where the problem has outputs");
    case Status::kDiverged:
      return fmt::format("The linear solve ({}) diverged: {} A smaller scale, or solver = \"cg\", is the usual remedy.", solver,
                         linear.message);
    default: return fmt::format("The linear solve ({}) failed ({}): {}", solver, to_string(linear.status), linear.message);
  }
}

}  // namespace

std::vector<std::string> ImplicitOptions::violations() const {
  std::vector<std::string> found;
  if (!(residual_warning > 0)) found.push_back(fmt::format("residual_warning should be positive, got {}.", residual_warning));
  if (!(stationarity_warning > 0)) {
    found.push_back(fmt::format("stationarity_warning should be positive, got {}.", stationarity_warning));
  }
  return found;
}

void read(Section& section, ImplicitOptions& options) {
  std::string curvature = options.gauss_newton ? "gauss-newton" : "hessian";
  section.read_choice("curvature", curvature, {"hessian", "gauss-newton"});
  options.gauss_newton = curvature == "gauss-newton";
  section.read("precondition", options.precondition);
}

Implicit::Implicit(std::unique_ptr<LinearSolver> solver, ImplicitOptions options)
    : solver_(std::move(solver)), options_(options) {
  require(solver_ != nullptr, "Implicit: a linear solver is needed, got none.");
  for (const auto& violation : options_.violations()) throw Error("Implicit: " + violation);
}

std::vector<std::string> Implicit::objections(const Problem& problem, const InnerSolver& solver) const {
  std::vector<std::string> objections = object_to_parts_beyond_the_inner_loss(problem, name());
  if (!solver.stops_at_stationarity()) {
    objections.push_back(fmt::format(
        "The inner rule \"{}\" with decoupled weight decay does not stop where the gradient of the inner loss is zero, so "
        "there is no optimality condition to differentiate. Use \"sgd\" or \"adam\", put the decay into the inner loss, or "
        "use estimator = \"unrolled\".",
        solver.name()));
  }
  if (options_.gauss_newton && !problem.has_outputs()) {
    objections.push_back(
        "curvature = \"gauss-newton\" needs a problem that offers its outputs (Problem::has_outputs), and this one does "
        "not. Use curvature = \"hessian\", with damping where it is indefinite.");
  }
  return objections;
}

Operator Implicit::curvature(const EstimatorInput& in, Linearization& linearization) const {
  const double shift = in.solver.coupled_weight_decay() + in.damping;
  const auto shifted = [shift](const at::Tensor& product, const at::Tensor& v) {
    return shift == 0.0 ? product : product + shift * v;
  };
  Operator A;
  A.dim = in.solution.y.size(0);
  A.blocks = true;
  A.symmetric = options_.gauss_newton || linearization.symmetric();
  if (options_.gauss_newton) {
    A.apply = [&linearization, shifted](const at::Tensor& v) { return shifted(linearization.gauss_newton(v), v); };
  } else if (A.symmetric) {
    A.apply = [&linearization, shifted](const at::Tensor& v) { return shifted(linearization.jvp_y(v), v); };
  } else {
    A.apply = [&linearization, shifted](const at::Tensor& v) { return shifted(linearization.vjp(v).y, v); };
    A.apply_transposed = [&linearization, shifted](const at::Tensor& v) { return shifted(linearization.jvp_y(v), v); };
  }
  A.step_size = in.solution.step_size;
  if (options_.precondition) A.precondition = in.oracle.problem().inner_preconditioner(in.x);
  return A;
}

double Implicit::stationarity_at_start(const EstimatorInput& in) const {
  if (in.cold_start) return in.solution.initial_stationarity;
  const at::Tensor y = in.oracle.problem().initial_inner(in.x, in.inner_batch.slice).detach();
  const at::Tensor gradient = in.oracle.inner(in.x, y, in.inner_batch).y;
  return (gradient + in.solver.coupled_weight_decay() * y).norm().item<double>();
}

Hypergradient Implicit::estimate(const EstimatorInput& in) const {
  return estimate(in, *in.oracle.linearize_inner(in.x, in.solution.y, in.inner_batch));
}

Hypergradient Implicit::estimate(const EstimatorInput& in, Linearization& linearization) const {
  const at::NoGradGuard no_grad;
  const Gradients outer = in.oracle.outer(in.x, in.solution.y, in.outer_batch);
  const LinearResult linear = solver_->solve(curvature(in, linearization), outer.y, in.q0);

  Hypergradient h = direct_term(in, outer, "F");
  h.q = linear.solution;
  h.value = outer.x - linearization.vjp(h.q).x;
  h.certificate.relative_residual = linear.relative_residual;
  h.message = fmt::format("{} left a relative residual of {:.2e} after {} products; the inner solve left ‖r‖ = {:.2e}.",
                          solver_->name(), linear.relative_residual, linear.iterations, in.solution.stationarity);

  check_finite(h, in.solution);
  if (failed(linear.status)) demote(h, Grade::kBad, linear_failure(linear, solver_->name(), options_.gauss_newton));
  if (linear.relative_residual > options_.residual_warning) {
    demote(
        h, Grade::kWarn,
        fmt::format("The linear solve ({}) left a relative residual of {:.2e} after {} products; more iterations would lower it.",
                    solver_->name(), linear.relative_residual, linear.iterations));
  }
  const double rounding = (in.x.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                             : static_cast<double>(std::numeric_limits<float>::epsilon())) *
                          100.0 * (1.0 + in.solution.y.norm().item<double>());
  const double stationarity = in.solution.stationarity;
  if (h.grade == Grade::kOk && in.solution.status != Status::kConverged && stationarity > rounding &&
      stationarity > options_.stationarity_warning * stationarity_at_start(in)) {
    demote(h, Grade::kWarn,
           fmt::format(
               "The inner solve is far from stationary (‖r‖ = {:.2e}), and the implicit hypergradient holds at ‖r‖ = 0; more "
               "inner steps would help.",
               stationarity));
  }
  return h;
}

}  // namespace bilevel
