#include "bilevel/inner/rule_solver.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/core/vectors.h"
#include "bilevel/inner/rule_helpers.h"
#include "bilevel/inner/solver_helpers.h"
#include "bilevel/inner/step_size.h"
#include "bilevel/oracle/autograd.h"
#include "bilevel/oracle/choice.h"

namespace bilevel {
namespace {

// The loss and the optimality map at y_t, and what came before.
struct Look {
  int64_t t = 0;
  double loss = 0, stationarity = 0;
  at::Tensor r, y;
  at::Tensor y_before, gradient_before;  // at y_{t−1}
};

at::Tensor scheduled(const at::Tensor& lr, const ScheduledLr& by) {
  const at::Tensor scaled = by.scale == 1.0 ? lr : by.scale * lr;
  return by.offset == 0.0 ? scaled : scaled + by.offset;
}

}  // namespace

std::vector<std::string> RuleSolverOptions::violations() const {
  std::vector<std::string> found;
  if (lr && !(*lr >= 0 && std::isfinite(*lr))) found.push_back(fmt::format("lr = {} must be finite and at least 0", *lr));
  if (steps < 0) found.push_back(fmt::format("steps = {} must be at least 0", steps));
  if (!(tolerance >= 0)) found.push_back(fmt::format("tolerance = {} must be at least 0", tolerance));
  if (check_every < 1) found.push_back(fmt::format("check_every = {} must be at least 1", check_every));
  if (batch < 0) found.push_back(fmt::format("batch = {} must be at least 0 (0: all samples)", batch));
  for (auto& violation : schedule.violations()) found.push_back(std::move(violation));
  return found;
}

void read(Section& section, RuleSolverOptions& options) {
  read_lr(section, options.lr);
  section.read("steps", options.steps);
  section.read("tolerance", options.tolerance);
  section.read("check_every", options.check_every);
  section.read("batch", options.batch);
  section.read("carry_state", options.carry_state);
  read(section, options.schedule);
  section.check(options.violations());
}

RuleSolver::RuleSolver(std::unique_ptr<UpdateRule> rule, RuleSolverOptions options, BatchPlan plan)
    : rule_(std::move(rule)), options_(options), plan_(std::move(plan)) {
  require(rule_ != nullptr, "RuleSolver: rule is null.");
  const auto found = options_.violations();
  require(found.empty(), fmt::format("RuleSolver: {}.", fmt::join(found, "; ")));
}

Batch RuleSolver::batch(int64_t step, int64_t slice) const {
  return {step, slice, plan_.samples(step), Stream(options_.seed, "inner loss").at(step).seed()};
}

std::vector<std::pair<size_t, at::Tensor>> RuleSolver::determined_by_outer(const Problem& problem, const at::Tensor& x,
                                                                           int64_t t) const {
  std::vector<std::pair<size_t, at::Tensor>> found;
  if (!problem.has_rule_hyperparameters()) return found;
  const auto names = rule_->hyperparameters();
  for (auto& [name, value] : problem.rule_hyperparameters(x, t)) {
    const auto at = std::find(names.begin(), names.end(), name);
    if (at == names.end()) {
      throw Error(fmt::format(
          "Problem::rule_hyperparameters: the rule {} has no hyperparameter \"{}\" that x could determine{}; it "
          "has {}.",
          rule_->name(), name,
          name == "momentum" || name == "dampening" ? " (momentum needs a buffer: name it in `learned`)" : "", one_of(names)));
    }
    require(name == "lr" || contains(rule_->learned(), name),
            fmt::format("Problem::rule_hyperparameters: x determines \"{}\", which the rule {} does not expect; name it in the "
                        "rule's option `learned`.",
                        name, rule_->name()));
    const int64_t dy = problem.inner_layout().size();
    require(
        value.numel() == 1 || value.numel() == dy,
        fmt::format("Problem::rule_hyperparameters: \"{}\" has {} elements; expected one, or {} as y.", name, value.numel(), dy));
    found.emplace_back(at - names.begin(), value.reshape(value.numel() == 1 ? at::IntArrayRef{} : at::IntArrayRef{dy}));
  }
  return found;
}

Tensors RuleSolver::hyperparameters(const SolveContext& context, int64_t t) const {
  Tensors h = context.h;
  for (auto& [i, value] : determined_by_outer(context.oracle.problem(), context.x, t)) h[i] = value.detach();
  if (const auto lr = lr_index()) h[*lr] = scheduled(h[*lr], scheduled_lr(options_.schedule, t, options_.steps));
  return h;
}

std::optional<size_t> RuleSolver::lr_index() const {
  const auto names = rule_->hyperparameters();
  const auto at = std::find(names.begin(), names.end(), "lr");
  if (at == names.end()) return std::nullopt;
  return static_cast<size_t>(at - names.begin());
}

at::Tensor RuleSolver::hyperparameters_vjp(const Problem& problem, const at::Tensor& x, int64_t t, const Tensors& h_bar) const {
  at::Tensor x_bar = at::zeros_like(x);
  const at::AutoGradMode on(true);
  const at::Tensor at_x = leaf(x);
  at::Tensor sum;
  for (auto& [i, value] : determined_by_outer(problem, at_x, t)) {
    if (!value.requires_grad()) continue;
    const double scale = i == lr_index() ? scheduled_lr(options_.schedule, t, options_.steps).scale : 1.0;
    const at::Tensor term = (value * h_bar[i]).sum() * scale;
    sum = sum.defined() ? sum + term : term;
  }
  return sum.defined() ? gradients(sum, {at_x})[0] : x_bar;
}

Tensors RuleSolver::hyperparameters_jvp(const SolveContext& context, int64_t t, const at::Tensor& u) const {
  Tensors dh;
  for (const auto& value : context.h) dh.push_back(at::zeros_like(value));
  const at::AutoGradMode on(true);
  const at::Tensor at_x = leaf(context.x);
  for (auto& [i, value] : determined_by_outer(context.oracle.problem(), at_x, t)) {
    dh[i] = at::zeros_like(value);
    if (!value.requires_grad()) continue;
    const at::Tensor w = at::zeros_like(value).requires_grad_();
    const at::Tensor pulled = gradients(value, {at_x}, w, true, true)[0];  // linear in w: its derivative along u is ∂h/∂x · u
    if (!pulled.requires_grad()) continue;
    dh[i] = gradients(pulled, {w}, u)[0];
    if (i == lr_index()) dh[i] = dh[i] * scheduled_lr(options_.schedule, t, options_.steps).scale;
  }
  return dh;
}

RuleInput RuleSolver::input(const SolveContext& context, const Point& point, int64_t t, at::Tensor gradient) const {
  return {.y = point.y,
          .state = point.state,
          .gradient = std::move(gradient),
          .h = hyperparameters(context, t),
          .step = point.t,
          .h_is_constant = !context.oracle.problem().has_rule_hyperparameters()};
}

Point RuleSolver::advance(const SolveContext& context, const Point& point, int64_t t, const at::Tensor& gradient) const {
  const at::NoGradGuard no_grad;
  RuleOutput out = rule_->step(input(context, point, t, gradient));
  return {std::move(out.y), std::move(out.state), point.t + 1};
}

Point RuleSolver::replay(const SolveContext& context, const Point& point, int64_t t) const {
  return advance(context, point, t, context.oracle.inner(context.x, point.y, batch(context.first_step + t, context.slice)).y);
}

Tensors RuleSolver::base_h(const at::Tensor& y, double lr) const {
  Tensors h = rule_->default_h(y);
  if (const auto i = lr_index()) h[*i] = at::scalar_tensor(lr, y.options());
  return h;
}

double RuleSolver::automatic_lr(const Oracle& oracle, const at::Tensor& x, int64_t slice, const at::Tensor& y) const {
  if (options_.lr) return *options_.lr;
  if (rule_->scale_free()) return std::max(kScaleFreeLr, lr_index() ? rule_->defaults()[*lr_index()] : 0.0);
  const Problem& problem = oracle.problem();
  double decay = rule_->coupled_weight_decay();
  if (problem.has_rule_hyperparameters()) {
    for (const auto& [name, value] : problem.rule_hyperparameters(x, 0)) {
      if (name == "lr") return 0.0;  // x gives it at every step
      if (name == "weight_decay") decay = value.max().item<double>();
    }
  }
  require(!problem.has_optimality_map() || problem.optimality_map_is_symmetric(),
          "RuleSolver: lr = \"auto\" rests on the curvature of a loss, and this problem gives an optimality map r that is not "
          "symmetric. "
          "Give lr; for a fixed point y = φ(x, y) with r = y − φ, lr = 1 is the plain iteration.");
  // The curvature of a logistic loss shrinks away from y₀ = 0, so that 1/L of a warm start alone would be too long a step.
  const Batch all{0, slice, {}, Stream(options_.seed, "inner loss").at(0).seed()};
  const auto curvature = [&](const at::Tensor& at) { return largest_curvature(*oracle.linearize_inner(x, at, all)); };
  const at::Tensor y0 = problem.initial_inner(x, slice).detach().to(y.options());
  double L = curvature(y0);
  if (!at::equal(y0, y)) L = std::max(L, curvature(y));
  L += decay;
  // 1/L is within the limits of heavy ball, 2(1 + μ)/L, and of Nesterov's momentum, 2(1 + μ)/(1 + 2μ)/L, too.
  return L > 0 ? 1.0 / L : std::isnan(L) ? std::numeric_limits<double>::quiet_NaN() : 1.0;
}

at::Tensor RuleSolver::step_size(const Problem& problem, const at::Tensor& x) const {
  const auto index = lr_index();
  require(index.has_value(), fmt::format("RuleSolver::step_size: the rule {} has no lr.", rule_->name()));
  const int64_t last = std::max<int64_t>(0, options_.steps - 1);
  const ScheduledLr by = scheduled_lr(options_.schedule, last, options_.steps);
  for (auto& [i, value] : determined_by_outer(problem, x, last)) {
    if (i == *index) return scheduled(value.detach(), by);
  }
  const at::Tensor y0 = problem.initial_inner(x, 0).detach();
  return scheduled(at::scalar_tensor(automatic_lr(*make_oracle(problem), x, 0, y0), y0.options()), by);
}

at::Tensor RuleSolver::residual(const Problem& problem, const at::Tensor& x, const at::Tensor& y,
                                const at::Tensor& gradient) const {
  Tensors h = rule_->default_h(y.detach());
  for (auto& [i, value] : determined_by_outer(problem, x, std::max<int64_t>(0, options_.steps - 1))) h[i] = value;
  return rule_->residual(y, gradient, h);
}

InnerSolution RuleSolver::solve(const Oracle& oracle, const at::Tensor& x_given, int64_t slice, const InnerStart& start,
                                const TrajectoryPolicy& policy) const {
  const at::Tensor x = x_given.detach(), y0 = start.y.detach();
  check_point(oracle.problem(), x, y0, "RuleSolver::solve");
  require_free(oracle.problem(), name());
  const bool carried = options_.carry_state && !start.state.empty();
  require(!carried || static_cast<int64_t>(start.state.size()) == rule_->slots(),
          fmt::format("RuleSolver::solve: the state to carry over has {} tensors, and the rule {} has {}.", start.state.size(),
                      rule_->name(), rule_->slots()));
  const SolveContext context{oracle, x, slice, start.first_step, base_h(y0, automatic_lr(oracle, x, slice, y0))};

  at::Tensor y_before = y0, gradient_before;
  const auto judged = [&](const Gradients& g, const at::Tensor& y, int64_t t) {
    const at::Tensor r = rule_->residual(y, g.y, hyperparameters(context, t));
    return Look{t, g.value.item<double>(), norm_of(r), r, y, y_before, gradient_before};
  };
  const bool blind_end = !policy.look_at_end && options_.tolerance == 0 && options_.steps > 0;
  // On minibatches a look at all samples costs many steps. Without a tolerance the start is judged by its own batch, and so is
  // the end of a solve that is shorter than what lies between two looks.
  const bool unchecked = !plan_.is_full() && options_.tolerance == 0;
  const bool brief = unchecked && options_.steps > 0 && options_.steps < options_.check_every;
  const auto look = [&](const at::Tensor& y, int64_t t) {
    Batch seen = batch(start.first_step + t, slice);
    if (!brief) seen.samples = at::Tensor();
    return judged(oracle.inner(x, y, seen), y, t);
  };

  InnerSolution solution;
  if (policy.keep) solution.trajectory = std::make_unique<Trajectory>(*this, context, policy, options_.steps);
  const bool along_graphs = solution.trajectory && solution.trajectory->wants_linearization();
  Point point{y0, carried ? start.state : rule_->fresh_state(y0), carried ? start.state_steps : 0};
  Look first, last;
  bool converged = false;
  int64_t t = 0;
  for (;; ++t) {
    const bool limit = t == options_.steps;
    if (limit && blind_end) break;
    std::unique_ptr<Linearization> linearization;
    Gradients g;
    if (!limit) {
      const Batch now = batch(start.first_step + t, slice);
      if (along_graphs) {
        linearization = oracle.linearize_inner(x, point.y, now);
        g.y = linearization->residual();  // before the value, which an oracle that is asked for it alone makes a pass of its own
        g.value = linearization->value();
      } else {
        g = oracle.inner(x, point.y, now);
      }
    }
    if (t == 0 || limit || (blind_end && t == options_.steps - 1) ||
        (options_.tolerance > 0 && (plan_.is_full() || t % options_.check_every == 0))) {
      // On the full batch the step's own gradient says how stationary y_t is.
      last = !limit && (plan_.is_full() || unchecked) ? judged(g, point.y, t) : look(point.y, t);
      if (t == 0) first = last;
      converged = options_.tolerance > 0 && last.stationarity <= options_.tolerance;
      if (limit || converged || !std::isfinite(last.stationarity)) break;
    }
    Point next = advance(context, point, t, g.y);
    if (solution.trajectory) solution.trajectory->record(point, std::move(linearization));
    y_before = std::move(point.y);
    gradient_before = std::move(g.y);
    point = std::move(next);
  }

  solution.y = point.y;
  solution.state = point.state;
  solution.state_steps = point.t;
  solution.loss = last.loss;
  solution.stationarity = last.stationarity;
  solution.initial_stationarity = first.stationarity;
  solution.steps = t;
  solution.previous = y_before;
  if (const auto lr = lr_index()) solution.step_size = hyperparameters(context, std::max<int64_t>(0, t - 1))[*lr];

  // Past 2/L the steepest direction is overshot further each time: the last two gradients of plain descent oppose each other, and
  // the later is the longer, though all other directions may still be settling.
  // So they may where a map that is no gradient turns and stretches on the way to its root.
  const Problem& problem = oracle.problem();
  const bool descends = !problem.has_optimality_map() || problem.optimality_map_is_symmetric();
  bool overshoots = false;
  if (descends && plan_.is_full() && rule_->slots() == 0 && last.t > 0 && std::isfinite(last.stationarity)) {
    const at::Tensor r_before = rule_->residual(last.y_before, last.gradient_before, hyperparameters(context, last.t - 1));
    const double before = norm_of(r_before);
    const double rounding = 100 * (y0.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                                   : static_cast<double>(std::numeric_limits<float>::epsilon()));
    overshoots = last.stationarity > before && dot_of(r_before, last.r) < -0.5 * before * last.stationarity &&
                 norm_of(last.y - last.y_before) > rounding * norm_of(last.y);
  }
  const bool grew = last.stationarity >= 10 * first.stationarity && last.loss > first.loss + 0.1 * std::abs(first.loss);
  const std::string from_to =
      fmt::format("stationarity went from {:.3g} to {:.3g} and the loss from {:.6g} to {:.6g} in {} steps", first.stationarity,
                  last.stationarity, first.loss, last.loss, last.t);
  if (!std::isfinite(last.stationarity) || !std::isfinite(last.loss)) {
    solution.status = Status::kNonFinite;
    solution.message = fmt::format("The inner solve ended in a NaN or an infinity after {} steps; a smaller lr may help.", t);
  } else if (grew || (overshoots && last.loss > first.loss)) {
    solution.status = Status::kDiverged;
    solution.message = fmt::format("The inner solve diverged: {}; a smaller lr may help.", from_to);
  } else if (converged) {
    solution.status = Status::kConverged;
    solution.message = fmt::format("Stationarity {:.3g} reached the tolerance after {} steps.", last.stationarity, t);
  } else if (overshoots) {
    solution.status = Status::kIterationLimit;
    solution.message =
        fmt::format("The steepest direction is overshot further at each step (lr is past 2/L there), though {}.", from_to);
  } else {
    solution.status = Status::kIterationLimit;
    solution.message = options_.tolerance > 0
                           ? fmt::format("Stationarity is {:.3g} after all {} steps; the tolerance {:.3g} was not reached.",
                                         last.stationarity, t, options_.tolerance)
                           : fmt::format("All {} steps were done; stationarity is {:.3g}{}.", t, last.stationarity,
                                         blind_end ? " before the last of them" : "");
  }
  return solution;
}

}  // namespace bilevel
