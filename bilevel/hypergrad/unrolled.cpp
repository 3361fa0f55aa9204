// With bars for derivatives of f(x, y_T), ȳ = ∂y f, s̄ = 0, x̄ = ∂x f at y_T, and for t = T−1, …, 0
//
//   (ȳ, s̄, ḡ, h̄) = (∂Φ/∂(y, s, g, h))ᵀ (ȳ, s̄)       the rule
//   ȳ += H ḡ,   x̄ += (∂x∂y g)ᵀ ḡ                    the loss at y_t, batch t
//   x̄ += (∂h_t/∂x)ᵀ h̄                               hyperparameters of the rule
//
// and at the end x̄ += (∂y₀/∂x)ᵀ ȳ. No graph spans two steps.
#include "bilevel/hypergrad/unrolled.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <optional>

#include "bilevel/core/bytes.h"
#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"
#include "bilevel/hypergrad/assembly.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/autograd.h"

namespace bilevel {
namespace {

// The derivative of F_T through all steps, which are done again from the same start, in the memory of √T states; none: they did
// not repeat themselves.
std::optional<Hypergradient> through_all_steps(const EstimatorInput& in, const RuleSolver& solver) {
  if (!in.start.y.defined()) return std::nullopt;
  const Unrolled all({.memory = Memory::kCheckpoints});
  InnerSolution again = solver.solve(in.oracle, in.x, in.inner_batch.slice, in.start, all.trajectory());
  if (again.steps != in.solution.steps || !at::allclose(again.y, in.solution.y)) return std::nullopt;
  EstimatorInput whole{in.oracle, in.solver, in.x, again, in.inner_batch, in.outer_batch, {}};
  whole.cold_start = in.cold_start;
  whole.start = in.start;
  whole.bound = true;
  return all.estimate(whole);
}

// A bound against F_T itself of what goes back through its last steps alone: the steps left out are gone back through once.
void bound_truncation(Hypergradient& h, const EstimatorInput& in, const RuleSolver& solver, int64_t left_out, double rounding) {
  if (!in.bound) {
    h.certificate.bound_reason = "No bound: none was asked for.";
    return;
  }
  const std::optional<Hypergradient> whole = through_all_steps(in, solver);
  if (!whole || !whole->certificate.error_bound) {
    h.certificate.bound_reason =
        "No bound: the steps of the inner solve did not repeat themselves, so the way back through all of them is not known.";
    return;
  }
  const double tail = norm_of(h.value - whole->value);
  h.certificate.error_bound = tail + rounding + *whole->certificate.error_bound;
  h.certificate.bound_reason = fmt::format(
      "The {} steps left out would add {:.2e} to the derivative of F_T, as going back through all of them once "
      "says; the rest is rounding.",
      left_out, tail);
}

}  // namespace

std::vector<std::string> UnrolledOptions::violations() const {
  std::vector<std::string> found;
  if (steps < 0) found.push_back(fmt::format("steps should be at least 1, or 0 for all, got {}.", steps));
  if (budget < 0) found.push_back(fmt::format("budget should be a number of bytes, or 0 for none, got {}.", budget));
  if (budget > 0 && memory != Memory::kCheckpoints) {
    found.push_back(
        "a budget is kept by checkpoints alone: memory = \"checkpoints\" would be right (graphs and states are then "
        "kept where the budget allows it).");
  }
  return found;
}

void read(Section& section, UnrolledOptions& options) {
  section.read("steps", options.steps);
  section.read_choice("memory", options.memory, {"graphs", "states", "checkpoints"});
  read_bytes(section, "budget", options.budget);
  section.check(options.violations());
}

Unrolled::Unrolled(UnrolledOptions options) : options_(options) {
  for (const auto& violation : options_.violations()) throw Error("Unrolled: " + violation);
}

TrajectoryPolicy Unrolled::trajectory() const {
  return {.keep = true,
          .memory = options_.memory,
          .last = options_.steps == 0 ? -1 : options_.steps,
          .slots = 0,
          .budget = options_.budget};
}

std::vector<std::string> Unrolled::objections(const Problem& problem, const InnerSolver& solver) const {
  const auto* rule_solver = dynamic_cast<const RuleSolver*>(&solver);
  if (rule_solver == nullptr) {
    return {fmt::format(
        "Unrolling goes back through the steps of an update rule, and the inner solver \"{}\" is none. Use a rule such as "
        "\"sgd\", or estimator = \"implicit\".",
        solver.name())};
  }
  if (problem.has_inner_constraints()) return object_to_constraints(problem, name());
  std::vector<std::string> objections = object_to_constraints(problem, name());
  if (options_.budget == 0 || !objections.empty()) return objections;
  try {  // whether the budget will do is metered on one step
    const AutodiffOracle oracle(problem);
    const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0).detach();
    const Trajectory trial(*rule_solver, {oracle, x, 0, 0, rule_solver->rule().default_h(y)}, trajectory(),
                           rule_solver->options().steps);
    return {};
  } catch (const Error& error) {
    return {error.what()};
  }
}

Hypergradient Unrolled::estimate(const EstimatorInput& in) const {
  const at::NoGradGuard no_grad;
  const auto* solver = dynamic_cast<const RuleSolver*>(&in.solver);
  require(solver != nullptr && in.solution.trajectory != nullptr,
          "Unrolled::estimate: the solution has no trajectory of an update rule; solve with Unrolled::trajectory().");
  Trajectory& trajectory = *in.solution.trajectory;
  const Problem& problem = in.oracle.problem();

  const Gradients outer = in.oracle.outer(in.x, in.solution.y, in.outer_batch);
  at::Tensor y_bar = outer.y;
  at::Tensor x_bar = outer.x;
  Tensors state_bar;
  for (int64_t i = 0; i < solver->rule().slots(); ++i) state_bar.push_back(at::zeros_like(in.solution.y));
  double norms = in.bound ? norm_of(x_bar) : 0.0;
  for (int64_t t = trajectory.size() - 1; t >= trajectory.first(); --t) {
    Step step = trajectory.take(t);
    RuleCotangent rule = solver->rule().vjp(step.input, y_bar, state_bar);
    const Vjp loss = in.bound ? step.linearization->vjp(rule.gradient) : step.linearization->vjp_share(rule.gradient);
    y_bar = sum_of(rule.y, 1.0, loss.y);
    x_bar = sum_of(x_bar, 1.0, loss.x);
    state_bar = std::move(rule.state);
    if (in.bound) norms += norm_of(loss.x);
    if (problem.has_rule_hyperparameters()) x_bar = x_bar + solver->hyperparameters_vjp(problem, in.x, t, rule.h);
  }
  const bool start_counts = trajectory.whole() && in.cold_start && problem.initial_inner_depends_on_outer();
  if (start_counts) x_bar = x_bar + initial_inner_vjp(problem, in.x, in.inner_batch.slice, y_bar);
  if (!in.bound) x_bar = in.oracle.whole(x_bar);

  const int64_t steps = trajectory.size() - trajectory.first();
  Hypergradient h = direct_term(in, outer, trajectory.whole() ? "F_T" : fmt::format("F_T, last {} steps", steps));
  h.value = x_bar;
  h.message = trajectory.whole()
                  ? fmt::format("The derivative of the loss after {} inner steps; the last gradient seen had ‖r‖ = {:.2e}.",
                                steps, in.solution.stationarity)
                  : fmt::format("The derivative through the last {} of {} inner steps, with the point before them held fixed.",
                                steps, trajectory.size());
  const double rounding = in.bound ? rounding_of_steps(h.value, steps, norms) : 0.0;
  if (!trajectory.whole()) {
    bound_truncation(h, in, *solver, trajectory.first(), rounding);
  } else if (in.bound) {
    h.certificate.error_bound = rounding;
    h.certificate.bound_reason = "All steps were gone back through: rounding is left.";
  } else {
    h.certificate.bound_reason = "No bound: none was asked for; all steps were gone back through, and rounding is left.";
  }
  check_finite(h, in.solution);
  if (h.grade == Grade::kBad) h.certificate.error_bound.reset();
  return h;
}

}  // namespace bilevel
