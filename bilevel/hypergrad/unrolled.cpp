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
#include "bilevel/hypergrad/assembly.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/step_size.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/autograd.h"

namespace bilevel {
namespace {

at::Tensor initial_inner_vjp(const Problem& problem, const at::Tensor& x, int64_t slice, const at::Tensor& y_bar) {
  const at::AutoGradMode grad_mode(true);
  const at::Tensor x_leaf = leaf(x);
  return gradients(problem.initial_inner(x_leaf, slice), {x_leaf}, y_bar)[0];
}

// The largest singular value of ∂x∂y g at one point, by power iteration, plus the residual of the last one.
double cross_norm(Linearization& linearization, const at::Tensor& x) {
  at::Tensor v = Stream(0, "cross norm").at(0).normal({x.size(0)}).to(x.options());
  double square = 0, residual = 0;
  for (int i = 0; i < 15; ++i) {
    const double norm = v.norm().item<double>();
    if (!(norm > 0)) return norm;
    v = v / norm;
    const at::Tensor w = linearization.vjp(linearization.jvp_x(v)).x;
    square = v.dot(w).item<double>();
    residual = (w - square * v).norm().item<double>();
    v = w;
  }
  return std::sqrt(square + residual);
}

// What is left out by stopping at t = T − K, for plain gradient descent of step η on a g with μ ≤ H ≤ L: each step back shrinks ȳ
// to ρ = max(|1 − ημ|, |1 − ηL|) of itself at most, so that
//
//   ‖Σ_{t < T−K} η (∂x∂y g at y_t)ᵀ ȳ_{t+1}‖ ≤ η ‖∂x∂y g‖ ‖ȳ_{T−K}‖ (1 − ρ^{T−K}) / (1 − ρ).
//
// L and ‖∂x∂y g‖ are taken at both ends of the steps left out, with a tenth on top for what lies between.
struct Tail {
  std::optional<double> bound;
  std::string reason;
  double mu = 0;
};

Tail tail_of(const EstimatorInput& in, const RuleSolver& solver, const Trajectory& trajectory, const at::Tensor& y_bar,
             Linearization* at_cut) {
  const Problem& problem = in.oracle.problem();
  const int64_t left_out = trajectory.first();
  if (!in.bound) return {std::nullopt, "No bound: none was asked for.", 0};
  if (solver.name() != "sgd" || solver.rule().slots() > 0) {
    return {std::nullopt, "No bound: how fast the steps left out fade is known for plain gradient descent alone.", 0};
  }
  if (problem.has_rule_hyperparameters() || (in.cold_start && problem.initial_inner_depends_on_outer())) {
    return {std::nullopt, "No bound: x moves the steps left out by other ways than the inner loss.", 0};
  }
  if (!solver.batch(trajectory.context().first_step, in.inner_batch.slice).full()) {
    return {std::nullopt, "No bound: nothing is known of the curvature of minibatches.", 0};
  }
  const double mu = problem.inner_strong_convexity(in.x) + solver.coupled_weight_decay();
  if (!(mu > 0))
    return {std::nullopt, "No bound: no strong convexity of the inner loss is known, so what is left out may not fade.", 0};
  if (at_cut == nullptr || !in.start.y.defined()) return {std::nullopt, "No bound: the steps left out cannot be looked at.", 0};

  const Batch batch = solver.batch(trajectory.context().first_step, in.inner_batch.slice);
  const auto at_start = in.oracle.linearize_inner(in.x, in.start.y, batch);
  const double eta = in.solution.step_size.item<double>();
  const double L = 1.1 * std::max(largest_curvature(*at_cut), largest_curvature(*at_start)) + solver.coupled_weight_decay();
  const double rho = std::max(std::abs(1 - eta * mu), std::abs(1 - eta * std::max(mu, L)));
  const double cross = 1.1 * std::max(cross_norm(*at_cut, in.x), cross_norm(*at_start, in.x));
  const double norm = y_bar.norm().item<double>();
  if (!(rho <= 1)) {
    return {std::nullopt,
            fmt::format("No bound: with a step size of {:.3g} and a curvature of {:.3g} the steps left out may grow.", eta, L),
            0};
  }
  const double n = static_cast<double>(left_out), sum = rho < 1 ? (1 - std::pow(rho, n)) / (1 - rho) : n;
  return {eta * cross * norm * sum,
          fmt::format("The tail of the {} steps left out, which fade like ({:.6g})^t: μ = {:.3g} is known, and L = {:.3g} and "
                      "‖∂x∂y g‖ = {:.3g} are taken at their ends.",
                      left_out, rho, mu, L, cross),
          mu};
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
  const std::vector<std::string> names = {"graphs", "states", "checkpoints"};  // in the order of Memory
  std::string memory = names[static_cast<size_t>(options.memory)];
  section.read("steps", options.steps);
  section.read_choice("memory", memory, names);
  options.memory = static_cast<Memory>(std::find(names.begin(), names.end(), memory) - names.begin());
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
  Tensors state_bar(static_cast<size_t>(solver->rule().slots()), at::zeros_like(in.solution.y));
  std::unique_ptr<Linearization> at_cut;
  at::Tensor norms = x_bar.norm();
  for (int64_t t = trajectory.size() - 1; t >= trajectory.first(); --t) {
    Step step = trajectory.take(t);
    RuleCotangent rule = solver->rule().vjp(step.input, y_bar, state_bar);
    const Vjp loss = step.linearization->vjp(rule.gradient);
    y_bar = rule.y + loss.y;
    x_bar = x_bar + loss.x;
    state_bar = std::move(rule.state);
    if (in.bound) norms = norms + loss.x.norm();
    if (problem.has_rule_hyperparameters()) x_bar = x_bar + solver->hyperparameters_vjp(problem, in.x, t, rule.h);
    if (in.bound && t == trajectory.first()) at_cut = std::move(step.linearization);
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
  const double rounding = in.bound ? rounding_of_steps(h.value, steps, norms.item<double>()) : 0.0;
  if (!trajectory.whole()) {
    const Tail tail = tail_of(in, *solver, trajectory, y_bar, at_cut.get());
    if (tail.bound) h.certificate.error_bound = *tail.bound + rounding;
    if (tail.bound) h.certificate.curvature = tail.mu;
    h.certificate.bound_reason = tail.reason;
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
