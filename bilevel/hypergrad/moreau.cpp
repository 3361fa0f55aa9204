// With r = ∂y g + (y − y₀)/γ the implicit function theorem gives value = ∂x f − (∂x r)ᵀ q, (∂y r)ᵀ q = ∂y f, and
//
//   ∂y r = H + I/γ,   ∂x r = ∂x∂y g − (∂y₀/∂x)/γ
#include "bilevel/hypergrad/moreau.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/assembly.h"
#include "bilevel/inner/rule_solver.h"

namespace bilevel {

std::vector<std::string> MoreauOptions::violations() const {
  std::vector<std::string> found;
  if (!(gamma >= 0 && std::isfinite(gamma))) {
    found.push_back(fmt::format("gamma should be positive, or 0 for step size × steps, got {}.", gamma));
  }
  if (halvings < 0) found.push_back(fmt::format("halvings should be at least 0, got {}.", halvings));
  return found;
}

void read(Section& section, MoreauOptions& options) {
  section.read("gamma", options.gamma);
  section.read("halvings", options.halvings);
  section.check(options.violations());
}

Moreau::Moreau(std::unique_ptr<LinearSolver> solver, MoreauOptions options) : solver_(std::move(solver)), options_(options) {
  require(solver_ != nullptr, "Moreau: a linear solver is needed, got none.");
  for (const auto& violation : options_.violations()) throw Error("Moreau: " + violation);
}

std::vector<std::string> Moreau::objections(const Problem& problem, const InnerSolver& solver) const {
  std::vector<std::string> found = object_to_constraints(problem, name());
  if (problem.has_optimality_map()) {
    found.push_back(
        "\"moreau\" adds a distance to the inner loss, and this problem gives an optimality map. Use estimator = \"implicit\".");
  }
  if (problem.has_rule_hyperparameters()) {
    found.push_back(
        "Parts of x feed the update rule, and \"moreau\" takes the inner solve for a proximal step, whatever the rule. Use "
        "estimator = "
        "\"unrolled\".");
  }
  const auto* rule = dynamic_cast<const RuleSolver*>(&solver);
  if (options_.gamma == 0 && (rule == nullptr || rule->name() != "sgd")) {
    found.push_back(
        fmt::format("\"moreau\" takes step size × steps of plain gradient descent for gamma, and the inner solver is \"{}\": "
                    "give gamma, the length of "
                    "the way in units of the gradient.",
                    solver.name()));
  }
  return found;
}

double Moreau::gamma(const EstimatorInput& in) const {
  if (options_.gamma > 0) return options_.gamma;
  return inner_step_size(in).mean().item<double>() * static_cast<double>(in.solution.steps);
}

Hypergradient Moreau::estimate(const EstimatorInput& in) const {
  const at::NoGradGuard no_grad;
  const Problem& problem = in.oracle.problem();
  const at::Tensor& y = in.solution.y;
  const Gradients outer = in.oracle.outer(in.x, y, in.outer_batch);
  Hypergradient h = direct_term(in, outer, "F_T, with a proximal step for the inner solve");
  const double gamma = this->gamma(in);
  const auto linearization = in.oracle.linearize_inner(in.x, y, in.batch_of_hvps());

  Operator A;
  A.dim = y.size(0);
  A.blocks = true;
  A.apply = [&](const at::Tensor& v) { return linearization->jvp_y(v).add(v, 1 / gamma + in.damping); };
  double step = gamma;
  const auto solve = [&] {
    A.step_size = at::scalar_tensor(step, y.options());
    return solver_->solve(A, outer.y, in.q0);
  };
  LinearResult linear = solve();
  int64_t halvings = 0;
  for (; halvings < options_.halvings && (linear.status == Status::kDiverged || linear.status == Status::kNonFinite);
       ++halvings) {
    step /= 2;
    linear = solve();
  }
  h.q = linear.solution;

  const auto for_cross = in.cross_batch ? in.oracle.linearize_inner(in.x, y, *in.cross_batch) : nullptr;
  h.value = outer.x - (for_cross ? *for_cross : *linearization).vjp(h.q).x;
  if (in.cold_start && problem.initial_inner_depends_on_outer()) {
    h.value = h.value + initial_inner_vjp(problem, in.x, in.inner_batch.slice, h.q / gamma);
  }

  h.certificate.relative_residual = linear.relative_residual;
  h.certificate.bias = "a proximal step stands for the inner solve";
  h.certificate.bound_reason = "No bound: how far the inner solve is from a proximal step is not known.";
  h.message = fmt::format("{} left a relative residual of {:.2e} after {} products; γ = {:.3g}.", solver_->name(),
                          linear.relative_residual, linear.iterations, gamma);
  if (in.start.y.defined()) {
    const at::Tensor pull = (y - in.start.y) / gamma;
    const double miss = ((linearization->residual() + pull).norm() / pull.norm()).item<double>();
    h.message +=
        fmt::format(" The proximal step would end where the loss pulls as far as the distance; {:.2g} of that is missing.", miss);
  }
  check_finite(h, in.solution);
  if (linear.status == Status::kIndefinite) {
    demote(h, Grade::kBad,
           fmt::format("H + I/γ is not positive definite at γ = {:.3g}: y has no proximal step of that length. A smaller gamma "
                       "would be right.",
                       gamma));
  } else if (failed(linear.status)) {
    demote(h, Grade::kBad,
           fmt::format("The linear solve ({}) failed ({}): {} The step was halved {} times. A smaller gamma, or solver = \"cg\", "
                       "would help.",
                       solver_->name(), to_string(linear.status), linear.message, halvings));
  } else if (halvings > 0) {
    demote(h, Grade::kWarn,
           fmt::format(
               "The fixed point ({}) diverged until its step was halved {} times, to {:.2g} γ; solver = \"cg\" needs no step.",
               solver_->name(), halvings, step / gamma));
  } else if (linear.relative_residual > 0.1) {
    demote(
        h, Grade::kWarn,
        fmt::format("The linear solve ({}) left a relative residual of {:.2e} after {} products; more iterations would lower it.",
                    solver_->name(), linear.relative_residual, linear.iterations));
  }
  return h;
}

}  // namespace bilevel
