// With dy [dx, dy] the derivative of y_t by x, row i that by x_i, and ds likewise, dy₀ = ∂y₀/∂x, ds₀ = 0, for t = 0, …, T−1
//
//   dg = H dy + ∂x∂y g                         the loss at y_t, batch t; no product for a row of dy that is still zero
//   dh = ∂h_t/∂x                               hyperparameters of the rule
//   (dy, ds) ← ∂Φ/∂(y, s, g, h) (dy, ds, dg, dh)
//
// and at the end ∇F_T = ∂x f + dy ∂y f.
#include "bilevel/hypergrad/forward.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "bilevel/core/bytes.h"
#include "bilevel/core/error.h"
#include "bilevel/hypergrad/assembly.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/oracle/autograd.h"

namespace bilevel {
namespace {

// ∂y₀/∂x [dx, dy].
at::Tensor initial_inner_jacobian(const Problem& problem, const at::Tensor& x, int64_t slice) {
  const at::AutoGradMode grad_mode(true);
  const at::Tensor x_leaf = leaf(x);
  const at::Tensor y0 = problem.initial_inner(x_leaf, slice);
  const at::Tensor jacobian = at::zeros({x.size(0), y0.size(0)}, x.options());
  if (!y0.requires_grad()) return jacobian;
  // w ↦ (∂y₀/∂x)ᵀ w is linear: its derivative along a unit vector of x is a row.
  const at::Tensor w = at::zeros_like(y0).requires_grad_();
  const at::Tensor pulled = gradients(y0, {x_leaf}, w, /*retain_graph=*/true, /*create_graph=*/true)[0];
  if (!pulled.requires_grad()) return jacobian;
  const at::NoGradGuard no_grad;
  for (int64_t i = 0; i < x.size(0); ++i) {
    at::Tensor unit = at::zeros_like(x);
    unit[i] = 1;
    jacobian[i].copy_(gradients(pulled, {w}, unit, /*retain_graph=*/true)[0]);
  }
  return jacobian;
}

// H dy. A row that is still zero, such as that of a step size whose steps are yet to come, costs no product.
at::Tensor products(Linearization& linearization, const at::Tensor& dy) {
  const at::Tensor begun = dy.ne(0).any(1).nonzero().flatten();
  if (begun.size(0) == dy.size(0)) return linearization.jvp_y(dy);
  at::Tensor all = at::zeros_like(dy);
  if (begun.size(0) > 0) all.index_copy_(0, begun, linearization.jvp_y(dy.index_select(0, begun)));
  return all;
}

// ∂h_t/∂x, row i by x_i: [dx, 1] of a scalar, [dx, dy] of a vector; zeros like h where x determines none.
Tensors hyperparameters_block(const RuleSolver& solver, const SolveContext& context, const Problem& problem, int64_t t,
                              const Tensors& h, const at::Tensor& unit) {
  Tensors block;
  if (!problem.has_rule_hyperparameters()) {
    for (const at::Tensor& value : h) block.push_back(at::zeros_like(value));
    return block;
  }
  const bool scalars = std::ranges::all_of(h, [](const at::Tensor& value) { return value.dim() == 0; });
  if (scalars) {  // fewer than columns, as a rule
    for (size_t j = 0; j < h.size(); ++j) {
      Tensors h_bar;
      for (size_t k = 0; k < h.size(); ++k) h_bar.push_back(at::full_like(h[k], k == j ? 1.0 : 0.0));
      block.push_back(solver.hyperparameters_vjp(problem, context.x, t, h_bar).unsqueeze(1));
    }
    return block;
  }
  std::vector<Tensors> rows(h.size());
  for (const at::Tensor& u : unit.unbind(0)) {
    const Tensors one = solver.hyperparameters_jvp(context, t, u);
    for (size_t j = 0; j < h.size(); ++j) rows[j].push_back(one[j]);
  }
  for (const Tensors& of_one : rows) {
    const at::Tensor stacked = at::stack(of_one);
    block.push_back(stacked.dim() == 1 ? stacked.unsqueeze(1) : stacked);
  }
  return block;
}

}  // namespace

std::vector<std::string> ForwardOptions::violations() const {
  std::vector<std::string> found;
  if (max_columns < 1) found.push_back(fmt::format("max_columns should be at least 1, got {}.", max_columns));
  if (budget < 1) found.push_back(fmt::format("budget should be a number of bytes, got {}.", budget));
  return found;
}

void read(Section& section, ForwardOptions& options) {
  section.read("max_columns", options.max_columns);
  read_bytes(section, "budget", options.budget);
  section.check(options.violations());
}

Forward::Forward(ForwardOptions options) : options_(options) {
  for (const auto& violation : options_.violations()) throw Error("Forward: " + violation);
}

TrajectoryPolicy Forward::trajectory() const {
  return {.keep = true, .memory = Memory::kCheckpoints, .last = -1, .slots = 1, .budget = 0};
}

std::vector<std::string> Forward::objections(const Problem& problem, const InnerSolver& solver) const {
  const auto* rule_solver = dynamic_cast<const RuleSolver*>(&solver);
  if (rule_solver == nullptr) {
    return {
        fmt::format("Forward mode goes through the steps of an update rule, and the inner solver \"{}\" is none. Use a rule such "
                    "as \"sgd\", or estimator = \"implicit\".",
                    solver.name())};
  }
  const int64_t dx = problem.outer_layout().size(), dy = problem.inner_layout().size();
  std::vector<std::string> objections = object_to_constraints(problem, name());
  if (dx > options_.max_columns) {
    objections.push_back(
        fmt::format("Forward mode carries one column for each element of x, and x has {} of them, more than max_columns = {}: "
                    "each inner step "
                    "would cost {} products. Use estimator = \"unrolled\", or raise max_columns.",
                    dx, options_.max_columns, 2 * dx));
  }
  const int64_t item = problem.initial_outer().element_size();
  // dy, dg and two in the making, what the rule's derivative has at hand, and for each slot of state the old, the new and two
  // more
  const double bytes = static_cast<double>(6 + 4 * rule_solver->rule().slots()) * static_cast<double>(dx) *
                       static_cast<double>(dy) * static_cast<double>(item);
  if (bytes > static_cast<double>(options_.budget)) {
    objections.push_back(fmt::format(
        "Forward mode holds the derivative of y by x, {} × {} numbers, and with its state and workspace that takes {}, more than "
        "budget = {}. Use estimator = \"unrolled\" with memory = \"checkpoints\", or raise the budget.",
        dx, dy, bytes_text(bytes), bytes_text(static_cast<double>(options_.budget))));
  }
  return objections;
}

Hypergradient Forward::estimate(const EstimatorInput& in) const {
  const at::NoGradGuard no_grad;
  const auto* solver = dynamic_cast<const RuleSolver*>(&in.solver);
  require(solver != nullptr && in.solution.trajectory != nullptr,
          "Forward::estimate: the solution has no start of an update rule's steps; solve with Forward::trajectory().");
  const Trajectory& trajectory = *in.solution.trajectory;
  const Problem& problem = in.oracle.problem();
  const UpdateRule& rule = solver->rule();
  const int64_t dx = in.x.size(0), T = trajectory.size();
  const at::Tensor& y_T = in.solution.y;

  const bool start_counts = in.cold_start && problem.initial_inner_depends_on_outer();
  at::Tensor dy =
      start_counts ? initial_inner_jacobian(problem, in.x, in.inner_batch.slice) : at::zeros({dx, y_T.size(0)}, y_T.options());
  Tensors ds;
  for (int64_t i = 0; i < rule.slots(); ++i) ds.push_back(at::zeros_like(dy));
  if (T > 0) {
    const SolveContext& context = trajectory.context();
    const at::Tensor unit = at::eye(dx, in.x.options());
    Point point = trajectory.start();
    for (int64_t t = 0; t < T; ++t) {
      const auto linearization = in.oracle.linearize_inner(in.x, point.y, solver->batch(context.first_step + t, context.slice));
      const at::Tensor dg = products(*linearization, dy).add_(linearization->jvp_x(unit));
      const RuleInput input = solver->input(context, point, t, linearization->residual());
      RuleOutput tangent =
          rule.jvp(input, {dy, std::move(ds), dg, hyperparameters_block(*solver, context, problem, t, input.h, unit)});
      dy = std::move(tangent.y);
      ds = std::move(tangent.state);
      point = solver->advance(context, point, t, input.gradient);
    }
  }

  const Gradients outer = in.oracle.outer(in.x, y_T, in.outer_batch);
  Hypergradient h = direct_term(in, outer, "F_T");
  h.value = outer.x + dy.mv(outer.y);
  h.message = fmt::format("The derivative of the loss after {} inner steps; the last gradient seen had ‖r‖ = {:.2e}.", T,
                          in.solution.stationarity);
  if (in.bound) {
    h.certificate.error_bound = rounding_of_steps(h.value, T, (outer.x.norm() + dy.norm() * outer.y.norm()).item<double>());
    h.certificate.bound_reason = "All steps were gone through: rounding is left.";
  } else {
    h.certificate.bound_reason = "No bound: none was asked for; all steps were gone through, and rounding is left.";
  }
  check_finite(h, in.solution);
  if (h.grade == Grade::kBad) h.certificate.error_bound.reset();
  return h;
}

}  // namespace bilevel
