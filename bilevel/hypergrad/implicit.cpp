// (∂y r)ᵀ q = b,   b = ∂y f,   value = ∂x f − (∂x r)ᵀ q
//
// Under constraints ∂y r = P J + (I − P) with J as if y moved freely (hypergrad/active_set.h), so that
//
//   P Jᵀ P q_P = P b,   q = q_P + (I − P)(b − Jᵀ q_P)
#include "bilevel/hypergrad/implicit.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/core/vectors.h"
#include "bilevel/hypergrad/active_set.h"
#include "bilevel/hypergrad/assembly.h"
#include "bilevel/hypergrad/optimality.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/linear/preconditioner.h"

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

std::string tried(const std::string& fallback) { return fallback.empty() ? "" : fmt::format(" Before, {}.", fallback); }

bool needs_symmetric(std::string_view solver) { return solver == "cg" || solver == "minres" || solver == "nystrom"; }

// Adam's 1/(√v + ε) [dy]; undefined where the solver is no rule that adapts.
at::Tensor rule_preconditioner(const InnerSolver& solver, const InnerSolution& solution) {
  const auto* rule = dynamic_cast<const RuleSolver*>(&solver);
  return rule != nullptr ? rule->rule().preconditioner(solution.state, solution.state_steps) : at::Tensor();
}

// About the largest |eigenvalue|, by a few steps of power iteration from b: its order of magnitude is all that is wanted.
double magnitude(const Operator& A, const at::Tensor& b) {
  at::Tensor v = b / b.norm();
  double size = 0;
  for (int i = 0; i < 6; ++i) {
    const at::Tensor w = A.apply(v);
    const double length = norm_of(w);
    if (!(length > 0) || !std::isfinite(length)) break;
    size = std::max(size, length);
    v = w / length;
  }
  return size;
}

}  // namespace

std::vector<std::string> ImplicitOptions::violations() const {
  std::vector<std::string> found;
  if (!(residual_warning > 0)) found.push_back(fmt::format("residual_warning should be positive, got {}.", residual_warning));
  if (!(stationarity_warning > 0)) {
    found.push_back(fmt::format("stationarity_warning should be positive, got {}.", stationarity_warning));
  }
  if (!(kink_tolerance >= 0)) found.push_back(fmt::format("kink_tolerance should be at least 0, got {}.", kink_tolerance));
  if (gauss_newton && on_indefinite == OnIndefinite::kGaussNewton) {
    found.push_back("on_indefinite = \"gauss-newton\" has nothing to fall back on where curvature is \"gauss-newton\" already.");
  }
  return found;
}

void read(Section& section, ImplicitOptions& options) {
  std::string curvature = options.gauss_newton ? "gauss-newton" : "hessian";
  section.read_choice("curvature", curvature, {"hessian", "gauss-newton"});
  options.gauss_newton = curvature == "gauss-newton";
  const std::string precondition = read_precondition(section);
  options.precondition = precondition == "problem";  // the other kinds are the linear solver's own
  options.precondition_by_rule = precondition == "rule";
  section.read_choice("on_indefinite", options.on_indefinite, {"stop", "damp", "gauss-newton", "minres"});
  section.check(options.violations());
}

Implicit::Implicit(std::unique_ptr<LinearSolver> solver, ImplicitOptions options, std::unique_ptr<LinearSolver> minres)
    : solver_(std::move(solver)), minres_(std::move(minres)), options_(options) {
  require(solver_ != nullptr, "Implicit: a linear solver is needed, got none.");
  for (const auto& violation : options_.violations()) throw Error("Implicit: " + violation);
  require(options_.on_indefinite != OnIndefinite::kMinres || minres_ != nullptr,
          "Implicit: on_indefinite = kMinres needs a solver to fall back on as third argument, got none.");
}

std::vector<std::string> Implicit::objections(const Problem& problem, const InnerSolver& solver) const {
  std::vector<std::string> objections = object_to_parts_beyond_the_inner_problem(problem, solver);
  for (auto& one : object_to_stopping_elsewhere(solver)) objections.push_back(std::move(one));
  const bool wants_gauss_newton = options_.gauss_newton || options_.on_indefinite == OnIndefinite::kGaussNewton;
  if (wants_gauss_newton && (!problem.has_outputs() || problem.has_optimality_map())) {
    objections.push_back(fmt::format(
        "{} = \"gauss-newton\" needs a problem that offers its outputs (Problem::has_outputs), and this one does not. Use {}.",
        options_.gauss_newton ? "curvature" : "on_indefinite",
        options_.gauss_newton ? "curvature = \"hessian\", with damping where it is indefinite" : "on_indefinite = \"damp\""));
  }
  if (problem.has_optimality_map() && !problem.optimality_map_is_symmetric() && needs_symmetric(solver_->name())) {
    objections.push_back(
        fmt::format("This problem's optimality map has no symmetric derivative, and the linear solver \"{}\" needs one. Use "
                    "solver = \"gmres\", "
                    "\"bicgstab\" or \"normal-cg\", or \"dense\" where y is small.",
                    solver_->name()));
  }
  if (options_.precondition_by_rule) {
    const at::Tensor y = problem.initial_inner(problem.initial_outer(), 0).detach();
    const auto* rule = dynamic_cast<const RuleSolver*>(&solver);
    if (rule == nullptr || !rule->rule().preconditioner(rule->rule().fresh_state(y), 1).defined()) {
      objections.push_back(
          fmt::format("precondition = \"rule\" takes what an adaptive inner rule such as \"adam\" has learned of the curvature, "
                      "and \"{}\" learns "
                      "nothing. Use precondition = \"diagonal\".",
                      solver.name()));
    }
  }
  return objections;
}

// r and what stands around it: the solver's own part in it, and the constraints'.
struct Implicit::Conditions {
  std::unique_ptr<Linearization> moved;  // where the solver drives something else to zero than r
  Linearization* free = nullptr;         // as if y moved freely
  std::unique_ptr<ActiveSet> active;     // where it does not
  Linearization& r() const { return active ? *active : *free; }
  at::Tensor project(const at::Tensor& v) const { return active ? active->project(v) : v; }
};

Implicit::Conditions Implicit::conditions(const EstimatorInput& in, Linearization& given) const {
  const Problem& problem = in.oracle.problem();
  Conditions at;
  at.moved = optimality(in.solver, problem, in.x, in.solution.y, given).linearization;
  at.free = at.moved ? at.moved.get() : &given;
  if (problem.has_inner_constraints()) {
    const at::Tensor& step = in.solution.step_size;
    const KinkTolerance tolerance{
        .relative = options_.kink_tolerance > 0 ? options_.kink_tolerance : KinkTolerance::of(in.x.scalar_type()),
        .stationarity = in.solution.stationarity,
        .step = step.defined() ? step.max().item<double>() : 0.0};
    at.active = std::make_unique<ActiveSet>(problem, in.x, in.solution.y, *at.free, tolerance);
  }
  return at;
}

// (∂y r)ᵀ + δI, on the directions in which y may move: P (∂y r)ᵀ P + (I − P) + δI.
Operator Implicit::matrix(const EstimatorInput& in, const Conditions& at, bool gauss_newton, double damping) const {
  Linearization* r = at.free;
  const ActiveSet* active = at.active.get();
  const auto on_free = [active, damping](auto product) {
    return [active, damping, product](const at::Tensor& v) {
      if (active == nullptr) return damping == 0 ? product(v) : product(v).add(v, damping);
      const at::Tensor p = active->project(v);
      return active->project(product(p)) + (1 + damping) * v - p;
    };
  };
  const auto forward = [r](const at::Tensor& v) { return r->jvp_y(v); };
  Operator A;
  A.dim = in.solution.y.size(0);
  A.blocks = true;
  A.symmetric = gauss_newton || r->symmetric();
  if (gauss_newton) {
    A.apply = on_free([r](const at::Tensor& v) { return r->gauss_newton(v); });
  } else if (A.symmetric) {
    A.apply = on_free(forward);
  } else {
    A.apply = on_free([r](const at::Tensor& v) { return r->vjp(v).y; });
    A.apply_transposed = on_free(forward);
  }
  if (takes_fresh_batches(in)) {
    const auto plan = std::make_shared<BatchPlan>(BatchPlan::shuffled(
        in.oracle.problem().inner_samples(), in.hvp_batch->samples.numel(), Stream(in.hvp_batch->seed, "linear solve")));
    A.apply_batch = [&in, on_free, plan, gauss_newton](const at::Tensor& v, int64_t k) {
      Batch batch = *in.hvp_batch;
      batch.samples = plan->samples(k);
      const auto given = in.oracle.linearize_inner(in.x, in.solution.y, batch);
      const Optimality moved = optimality(in.solver, in.oracle.problem(), in.x, in.solution.y, *given);
      Linearization& r_k = moved.linearization ? *moved.linearization : *given;
      return on_free([&](const at::Tensor& u) { return gauss_newton ? r_k.gauss_newton(u) : r_k.vjp(u).y; })(v);
    };
  }
  A.step_size = in.solution.step_size;
  std::function<at::Tensor(const at::Tensor&)> precondition;
  if (options_.precondition) precondition = in.oracle.problem().inner_preconditioner(in.x);
  if (options_.precondition_by_rule) {
    const at::Tensor diagonal = rule_preconditioner(in.solver, in.solution);
    if (diagonal.defined()) precondition = [diagonal](const at::Tensor& v) { return v * diagonal; };
  }
  if (precondition && active != nullptr) {
    A.precondition = [active, precondition](const at::Tensor& v) {
      const at::Tensor p = active->project(v);
      return active->project(precondition(p)) + v - p;
    };
  } else {
    A.precondition = precondition;
  }
  return A;
}

LinearResult Implicit::solve(const EstimatorInput& in, const Conditions& at, const at::Tensor& b, std::string& fallback) const {
  const at::Tensor q0 = in.q0.defined() ? at.project(in.q0) : in.q0;
  LinearResult result = solver_->solve(matrix(in, at, options_.gauss_newton, in.damping), b, q0);
  if (result.status != Status::kIndefinite || options_.on_indefinite == OnIndefinite::kStop) return result;
  if (options_.on_indefinite == OnIndefinite::kMinres) {
    fallback = "minres took its place";
    return minres_->solve(matrix(in, at, options_.gauss_newton, in.damping), b, {});
  }
  if (options_.on_indefinite == OnIndefinite::kGaussNewton) {
    fallback = "Gauss–Newton's curvature took the place of the Hessian";
    return solver_->solve(matrix(in, at, true, in.damping), b, {});
  }
  const double size = magnitude(matrix(in, at, options_.gauss_newton, 0.0), b);
  double damping = 1e-3 * size;
  for (int i = 0; i < 6 && result.status == Status::kIndefinite && std::isfinite(damping) && damping > 0; ++i, damping *= 10) {
    fallback = fmt::format("damping {:.3g} was added", damping);
    result = solver_->solve(matrix(in, at, options_.gauss_newton, in.damping + damping), b, {});
  }
  return result;
}

// `sgd` wants another batch for each product; any other solver one matrix, hence one batch.
bool Implicit::takes_fresh_batches(const EstimatorInput& in) const {
  return solver_->name() == "sgd" && in.hvp_batch && in.hvp_batch->samples.defined() && in.oracle.problem().inner_samples() > 0;
}

double Implicit::stationarity_at_start(const EstimatorInput& in) const {
  if (in.cold_start || in.oracle.problem().has_inner_constraints()) return in.solution.initial_stationarity;
  const Problem& problem = in.oracle.problem();
  const at::Tensor y = problem.initial_inner(in.x, in.inner_batch.slice).detach();
  return norm_of(in.solver.residual(problem, in.x, y, in.oracle.inner(in.x, y, in.inner_batch).y));
}

Hypergradient Implicit::estimate(const EstimatorInput& in) const {
  const Batch& batch = takes_fresh_batches(in) ? in.inner_batch : in.batch_of_hvps();
  return estimate(in, *in.oracle.linearize_inner(in.x, in.solution.y, batch));
}

Hypergradient Implicit::estimate(const EstimatorInput& in, Linearization& linearization) const {
  const at::NoGradGuard no_grad;
  const Gradients outer = in.oracle.outer(in.x, in.solution.y, in.outer_batch);
  const Conditions at = conditions(in, linearization);
  Hypergradient h = direct_term(in, outer, "F");
  if (!at.free->symmetric() && !options_.gauss_newton && needs_symmetric(solver_->name())) {
    h.q = at::zeros_like(outer.y);
    demote(h, Grade::kBad,
           fmt::format(
               "What the inner solver \"{}\" drives to zero has no symmetric derivative at this y, which is not at rest, and {} "
               "needs one: more inner steps, or solver = \"gmres\", would help.",
               in.solver.name(), solver_->name()));
    return h;
  }
  std::string fallback;
  const LinearResult linear = solve(in, at, at.project(outer.y), fallback);

  if (options_.gauss_newton || fallback.starts_with("Gauss"))
    h.certificate.bias = "Gauss–Newton's curvature stands for the Hessian";
  h.q = linear.solution;
  // What the coordinates that do not move owe to x follows from those that do.
  if (at.active) {
    const at::Tensor rest = outer.y - at.free->vjp(h.q).y;
    h.q = h.q + rest - at.project(rest);
  }
  if (in.hvp_batch || in.cross_batch) {
    const auto other = in.oracle.linearize_inner(in.x, in.solution.y, in.batch_of_cross_product());
    h.value = outer.x - conditions(in, *other).r().vjp(h.q).x;
  } else {
    h.value = outer.x - at.r().vjp(h.q).x;
  }
  h.certificate.relative_residual = linear.relative_residual;
  h.message = fmt::format("{} left a relative residual of {:.2e} after {} products; the inner solve left ‖r‖ = {:.2e}.",
                          solver_->name(), linear.relative_residual, linear.iterations, in.solution.stationarity);

  check_finite(h, in.solution);
  if (at.active && !at.active->kink().empty()) demote(h, Grade::kBad, at.active->kink());
  if (at.active && !at.active->doubt().empty()) demote(h, Grade::kWarn, at.active->doubt());
  if (failed(linear.status))
    demote(h, Grade::kBad, linear_failure(linear, solver_->name(), options_.gauss_newton) + tried(fallback));
  if (!fallback.empty()) {
    demote(
        h, Grade::kWarn,
        fmt::format("{} met negative curvature, and {}: a relative residual of {:.2e} after {} products. y is no minimum of the "
                    "inner problem yet; more inner steps would help.",
                    solver_->name(), fallback, linear.relative_residual, linear.iterations));
  }
  if (linear.relative_residual > options_.residual_warning) {
    demote(
        h, Grade::kWarn,
        fmt::format("The linear solve ({}) left a relative residual of {:.2e} after {} products; more iterations would lower it.",
                    solver_->name(), linear.relative_residual, linear.iterations));
  }
  const double rounding = (in.x.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                             : static_cast<double>(std::numeric_limits<float>::epsilon())) *
                          100.0 * (1.0 + norm_of(in.solution.y));
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
