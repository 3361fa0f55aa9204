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

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/assembly.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/oracle/autograd.h"

namespace bilevel {
namespace {

at::Tensor initial_inner_vjp(const Problem& problem, const at::Tensor& x, int64_t slice, const at::Tensor& y_bar) {
  const at::AutoGradMode grad_mode(true);
  const at::Tensor x_leaf = leaf(x);
  return gradients(problem.initial_inner(x_leaf, slice), {x_leaf}, y_bar)[0];
}

}  // namespace

std::vector<std::string> UnrolledOptions::violations() const {
  if (steps >= 0) return {};
  return {fmt::format("steps should be at least 1, or 0 for all, got {}.", steps)};
}

void read(Section& section, UnrolledOptions& options) {
  const std::vector<std::string> names = {"graphs", "states", "checkpoints"};  // in the order of Memory
  std::string memory = names[static_cast<size_t>(options.memory)];
  section.read("steps", options.steps);
  section.read_choice("memory", memory, names);
  options.memory = static_cast<Memory>(std::find(names.begin(), names.end(), memory) - names.begin());
  section.check(options.violations());
}

Unrolled::Unrolled(UnrolledOptions options) : options_(options) {
  for (const auto& violation : options_.violations()) throw Error("Unrolled: " + violation);
}

TrajectoryPolicy Unrolled::trajectory() const {
  return {.keep = true, .memory = options_.memory, .last = options_.steps == 0 ? -1 : options_.steps};
}

std::vector<std::string> Unrolled::objections(const Problem&, const InnerSolver& solver) const {
  if (dynamic_cast<const RuleSolver*>(&solver) != nullptr) return {};
  return {fmt::format(
      "Unrolling goes back through the steps of an update rule, and the inner solver \"{}\" is none. Use a rule such as "
      "\"sgd\", or estimator = \"implicit\".",
      solver.name())};
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
  Tensors state_bar = solver->rule().fresh_state(in.solution.y);
  for (int64_t t = trajectory.size() - 1; t >= trajectory.first(); --t) {
    const Step step = trajectory.take(t);
    RuleCotangent rule = solver->rule().vjp(step.input, y_bar, state_bar);
    const Vjp loss = step.linearization->vjp(rule.gradient);
    y_bar = rule.y + loss.y;
    x_bar = x_bar + loss.x;
    state_bar = std::move(rule.state);
    if (problem.has_rule_hyperparameters()) x_bar = x_bar + solver->hyperparameters_vjp(problem, in.x, t, rule.h);
  }
  const bool start_counts = trajectory.whole() && in.cold_start && problem.initial_inner_depends_on_outer();
  if (start_counts) x_bar = x_bar + initial_inner_vjp(problem, in.x, in.inner_batch.slice, y_bar);

  const int64_t steps = trajectory.size() - trajectory.first();
  Hypergradient h = direct_term(in, outer, trajectory.whole() ? "F_T" : fmt::format("F_T, last {} steps", steps));
  h.value = x_bar;
  h.message = trajectory.whole()
                  ? fmt::format("The derivative of the loss after {} inner steps; the inner solve left ‖r‖ = {:.2e}.", steps,
                                in.solution.stationarity)
                  : fmt::format("The derivative through the last {} of {} inner steps, with the point before them held fixed.",
                                steps, trajectory.size());
  check_finite(h, in.solution);
  return h;
}

}  // namespace bilevel
