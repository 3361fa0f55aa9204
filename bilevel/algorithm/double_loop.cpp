#include "bilevel/algorithm/double_loop.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "bilevel/algorithm/projection.h"
#include "bilevel/core/clock.h"
#include "bilevel/core/error.h"
#include "bilevel/core/memory_meter.h"
#include "bilevel/core/stream.h"
#include "bilevel/core/vectors.h"
#include "bilevel/oracle/counted.h"

namespace bilevel {
namespace {

/// The part of slice s of a State entry that is [d] for one inner problem and [k, d] for k of them.
at::Tensor slice_of(const at::Tensor& entry, int64_t s, int64_t k) { return k == 1 ? entry : entry.select(0, s); }
at::Tensor entry_of(const Tensors& slices) { return slices.size() == 1 ? slices.front() : at::stack(slices); }

/// A number that is the worst of two, and unknown where one of them is.
void worst(std::optional<double>& kept, const std::optional<double>& other) {
  if (kept && other)
    kept = std::max(*kept, *other);
  else
    kept.reset();
}

/// The mean of independent estimates at one point, with its standard error √(Σ ‖dᵢ − d‖² / (N (N − 1))); warnings are the worst.
Hypergradient mean_of_draws(std::vector<Hypergradient> draws) {
  const auto n = static_cast<double>(draws.size());
  Hypergradient mean = draws.front();
  for (size_t i = 1; i < draws.size(); ++i) {
    const Hypergradient& one = draws[i];
    mean.value = mean.value + one.value;
    mean.direct = mean.direct + one.direct;
    if (mean.q.defined()) mean.q = mean.q + one.q;
    mean.outer_loss += one.outer_loss;
    worst(mean.certificate.relative_residual, one.certificate.relative_residual);
    mean.cost += one.cost;
    if (one.grade > mean.grade) {
      mean.grade = one.grade;
      mean.message = one.message;
    }
  }
  mean.value = mean.value / n;
  mean.direct = mean.direct / n;
  if (mean.q.defined()) mean.q = mean.q / n;
  mean.outer_loss /= n;
  double squares = 0;
  for (const Hypergradient& one : draws) squares += (one.value - mean.value).square().sum().item<double>();
  mean.certificate.standard_error = std::sqrt(squares / (n * (n - 1)));
  mean.certificate.error_bound.reset();
  mean.certificate.bound_reason = fmt::format("No bound: the mean of {} draws of the batches, whose standard error is given.", n);
  return mean;
}

std::string state_slot(int64_t j) { return fmt::format("inner.state.{}", j); }
std::string carried_slot(int64_t s, size_t j) { return fmt::format("estimator.{}.{}", s, j); }

}  // namespace

std::vector<std::string> DoubleLoopOptions::violations() const {
  std::vector<std::string> found;
  if (variance_samples < 1) found.push_back(fmt::format("variance_samples should be at least 1, got {}", variance_samples));
  if (bound_every < 0) found.push_back(fmt::format("bound_every should be at least 0 (never), got {}", bound_every));
  if (check_every < 0) found.push_back(fmt::format("check_every should be at least 0 (never), got {}", check_every));
  return found;
}

void read(Section& inner, DoubleLoopOptions& options) {
  inner.read_choice("start", options.start, {"warm", "cold"});
  inner.read("carry_state",
             options.carry_rule_state);  // RuleSolverOptions reads it too: the solver must go on from what it is given
}

/// What was found at x_k: means over the inner problems, and the worst of what is a warning.
struct DoubleLoop::Visit {
  Hypergradient mean;
  Status status = Status::kConverged;
  std::map<std::string, double> metrics;
  Cost cost;
};

DoubleLoop::DoubleLoop(const Oracle& oracle, std::shared_ptr<const InnerSolver> solver,
                       std::shared_ptr<const Estimator> estimator, std::shared_ptr<const OuterOptimizer> outer,
                       DoubleLoopOptions options)
    : oracle_(oracle),
      solver_(std::move(solver)),
      estimator_(std::move(estimator)),
      outer_(std::move(outer)),
      options_(std::move(options)) {
  const std::vector<std::string> violations = options_.violations();
  require(violations.empty(), fmt::format("DoubleLoop: {}", fmt::join(violations, "; ")));
  const std::vector<std::string> objections = estimator_->objections(oracle_.problem(), *solver_);
  require(objections.empty(),
          fmt::format("The estimator \"{}\" cannot serve here: {}", estimator_->name(), fmt::join(objections, " ")));
  const BatchRoles roles = estimator_->batch_roles();
  require(options_.hvp_batches.is_full() || roles.hvps,
          fmt::format("The estimator \"{}\" solves no linear system, so hvp_batch has nothing to be the batch of.",
                      estimator_->name()));
  require(
      options_.cross_batches.is_full() || roles.cross_product,
      fmt::format("The estimator \"{}\" takes no cross product at the solution, so cross_batch has nothing to be the batch of.",
                  estimator_->name()));
  require(options_.start == Start::kCold || !oracle_.problem().initial_inner_depends_on_outer(),
          "DoubleLoop: this problem's y₀ depends on x, so each outer step must begin there; use start = \"cold\".");
}

State DoubleLoop::init() const {
  const Problem& problem = oracle_.problem();
  const at::NoGradGuard no_grad;
  const at::Tensor x = problem.initial_outer().detach().clone();
  const int64_t k = problem.inner_problems();
  require(k >= 1, fmt::format("DoubleLoop: the problem has {} inner problems; at least one is needed.", k));
  Tensors y;
  for (int64_t s = 0; s < k; ++s) y.push_back(problem.initial_inner(x, s).detach().clone());
  check_point(problem, x, y.front(), "DoubleLoop::init");
  require_inside(problem, x);
  State state;
  state.set("x", x);
  state.set("y", entry_of(y));
  state.set("step", int64_t{0});
  state.set("inner_step", int64_t{0});
  return state;
}

DoubleLoop::Visit DoubleLoop::visit(State& state, const Examination& examination) const {
  const Clock::time_point began = Clock::now();
  const auto* counted = dynamic_cast<const CountedOracle*>(&oracle_);
  const Cost cost_before = counted ? counted->cost() : Cost{};
  const MemoryMeter meter;

  const Problem& problem = oracle_.problem();
  const at::Tensor x = state.tensor("x");
  const int64_t k = problem.inner_problems();
  const int64_t step = state.integer("step");
  const bool warm = options_.start == Start::kWarm;

  Visit visit;
  Hypergradient& mean = visit.mean;
  Tensors y, q;
  std::vector<Tensors> rule_states, carried;
  std::vector<int64_t> state_steps;
  int64_t inner_steps = 0;
  // A spot check goes back to all of them.
  std::vector<std::unique_ptr<InnerSolution>> solutions;
  std::vector<std::unique_ptr<EstimatorInput>> inputs;
  Cost of_examination;
  const auto examined = [&](const auto& examine) {
    const Cost before = counted ? counted->cost() : Cost{};
    examine();
    if (counted) of_examination += counted->cost() - before;
  };
  // A certificate is about y_T; without one, the loss and the stationarity of the last step serve the record.
  TrajectoryPolicy policy = estimator_->trajectory();
  policy.look_at_end = !policy.keep || examination.bound || examination.check;
  for (int64_t s = 0; s < k; ++s) {
    InnerStart start;
    start.y = warm ? slice_of(state.tensor("y"), s, k) : problem.initial_inner(x, s).detach();
    start.first_step = state.integer("inner_step");
    if (warm && options_.carry_rule_state && state.has("inner.state_steps")) {
      start.state_steps = state.tensor("inner.state_steps")[s].item<int64_t>();
      for (int64_t j = 0; state.has(state_slot(j)); ++j) start.state.push_back(slice_of(state.tensor(state_slot(j)), s, k));
    }
    solutions.push_back(std::make_unique<InnerSolution>());
    InnerSolution& solution = *solutions.back();
    const at::Tensor q0 = options_.warm_q && state.has("q") ? slice_of(state.tensor("q"), s, k) : at::Tensor{};
    const auto input_of = [&](InnerSolution& solved, int64_t draw) {
      const int64_t n = options_.variance_samples, batch_index = step * n + draw, noise = (step * k + s) * n + draw;
      Batch inner_batch, outer_batch;
      outer_batch.step = step;
      inner_batch.slice = outer_batch.slice = s;
      inner_batch.seed = Stream(options_.seed, "inner products").at(noise).seed();
      outer_batch.seed = Stream(options_.seed, "outer loss").at(noise).seed();
      outer_batch.samples = options_.outer_batches.samples(batch_index);
      auto given = std::make_unique<EstimatorInput>(EstimatorInput{oracle_, *solver_, x, solved, inner_batch, outer_batch, q0});
      EstimatorInput& input = *given;
      const auto role = [&](const BatchPlan& plan, std::optional<Batch>& batch) {
        if (plan.is_full()) return;
        batch = inner_batch;
        batch->samples = plan.samples(batch_index);
      };
      role(options_.hvp_batches, input.hvp_batch);
      role(options_.cross_batches, input.cross_batch);
      input.damping = state.has("damping") ? state.number("damping") : 0.0;
      input.cold_start = !warm;
      input.start = start;
      input.bound = examination.bound && n == 1;
      for (size_t j = 0; state.has(carried_slot(s, j)); ++j) input.carried.push_back(state.tensor(carried_slot(s, j)));
      return given;
    };
    const auto solve = [&](EstimatorInput& input) {
      if (policy.keep) policy.follower = estimator_->follower(input);
      input.solution = solver_->solve(oracle_, x, s, start, policy);
    };
    const auto estimate = [&](EstimatorInput& input) {
      for (Batch* batch : {&input.inner_batch, input.hvp_batch ? &*input.hvp_batch : nullptr,
                           input.cross_batch ? &*input.cross_batch : nullptr}) {
        if (batch != nullptr) batch->step = start.first_step + input.solution.steps;
      }
      return estimator_->estimate(input);
    };
    inputs.push_back(input_of(solution, 0));
    solve(*inputs.back());
    Hypergradient one = estimate(*inputs.back());
    if (options_.variance_samples > 1) {
      std::vector<Hypergradient> draws{std::move(one)};
      for (int64_t draw = 1; draw < options_.variance_samples; ++draw) {
        // A way back uses the trajectory up: the same solve, on the same inner batches, once more.
        InnerSolution again;
        const auto input = input_of(policy.keep ? again : solution, draw);
        if (policy.keep) solve(*input);
        draws.push_back(estimate(*input));
      }
      one = mean_of_draws(std::move(draws));
    } else if (examination.bound) {
      examined([&] { certify(one, *inputs.back(), options_.bound); });
    }
    if (one.certificate.bound_reason.empty() && !one.certificate.error_bound) {
      one.certificate.bound_reason = examination.bound
                                         ? fmt::format("No bound: none is known for \"{}\".", one.certificate.differentiates)
                                         : "No bound: none was asked for at this step.";
    }

    y.push_back(solution.y);
    rule_states.push_back(solution.state);
    state_steps.push_back(solution.state_steps);
    inner_steps = std::max(inner_steps, solution.steps);
    if (one.q.defined()) q.push_back(one.q);
    carried.push_back(one.carried);
    if (examination.metrics) {
      const at::NoGradGuard no_grad;
      for (const auto& [name, value] : problem.metrics(x, solution.y)) visit.metrics[name] += value / static_cast<double>(k);
    }
    if (failed(solution.status) && !failed(visit.status)) visit.status = solution.status;
    if (failed(solution.status) && one.grade != Grade::kBad) {
      one.grade = Grade::kBad;
      one.message = solution.message;
    }
    if (s == 0) {
      mean = std::move(one);
      continue;
    }
    if (one.grade > mean.grade) {
      mean.grade = one.grade;
      mean.message = fmt::format("Inner problem {}: {}", s, one.message);
    }
    mean.value = mean.value + one.value;
    mean.direct = mean.direct + one.direct;
    mean.inner_loss += one.inner_loss;
    mean.outer_loss += one.outer_loss;
    mean.certificate.stationarity = std::max(mean.certificate.stationarity, one.certificate.stationarity);
    worst(mean.certificate.relative_residual, one.certificate.relative_residual);
    if (mean.certificate.error_bound && !one.certificate.error_bound) {
      mean.certificate.bound_reason = fmt::format("{} (inner problem {})", one.certificate.bound_reason, s);
    }
    worst(mean.certificate.error_bound, one.certificate.error_bound);
    if (mean.certificate.curvature && one.certificate.curvature) {
      mean.certificate.curvature = std::min(*mean.certificate.curvature, *one.certificate.curvature);
    } else {
      mean.certificate.curvature.reset();
    }
    worst(mean.certificate.distance_to_F, one.certificate.distance_to_F);
    if (mean.certificate.adjoint_cosine && one.certificate.adjoint_cosine) {
      mean.certificate.adjoint_cosine = std::min(*mean.certificate.adjoint_cosine, *one.certificate.adjoint_cosine);
    }
    std::optional<double>& error = mean.certificate.standard_error;
    if (error && one.certificate.standard_error) {
      *error += *one.certificate.standard_error;  // of the sum at most, for the inner problems may share their batches
    } else {
      error.reset();
    }
    mean.cost += one.cost;
  }
  if (k > 1) {
    const auto n = static_cast<double>(k);
    mean.value = mean.value / n;
    mean.direct = mean.direct / n;
    mean.inner_loss /= n;
    mean.outer_loss /= n;
    if (mean.certificate.standard_error) *mean.certificate.standard_error /= n;
  }
  if (examination.check) examined([&] { check(mean, x, inputs, step); });
  mean.q = static_cast<int64_t>(q.size()) == k ? entry_of(q) : at::Tensor{};

  state.set("y", entry_of(y));
  if (mean.q.defined()) state.set("q", mean.q);
  for (size_t s = 0; s < carried.size(); ++s) {
    for (size_t j = 0; j < carried[s].size(); ++j) state.set(carried_slot(static_cast<int64_t>(s), j), carried[s][j]);
  }
  if (options_.carry_rule_state) {
    for (size_t j = 0; j < rule_states.front().size(); ++j) {
      Tensors slot;
      for (const Tensors& one : rule_states) slot.push_back(one[j]);
      state.set(state_slot(static_cast<int64_t>(j)), entry_of(slot));
    }
    state.set("inner.state_steps", at::tensor(state_steps, at::kLong));
  }
  state.set("inner_step", state.integer("inner_step") + inner_steps);

  const bool finite = std::isfinite(mean.outer_loss) && std::isfinite(mean.inner_loss) && std::isfinite(norm_of(mean.value));
  if (!finite) {
    visit.status = Status::kNonFinite;
    mean.grade = Grade::kBad;
    if (mean.message.empty()) mean.message = "A loss or the hypergradient is not finite.";
  }
  visit.cost = counted ? counted->cost() - cost_before : mean.cost;
  visit.cost.second_thread_seconds = mean.cost.second_thread_seconds;
  visit.cost.hidden_seconds = mean.cost.hidden_seconds;
  visit.cost.seconds = seconds_since(began);
  visit.cost.peak_bytes = std::max(meter.peak_bytes(), mean.cost.peak_bytes);
  mean.cost = visit.cost - of_examination;  // what the estimate alone takes
  return visit;
}

void DoubleLoop::check(Hypergradient& mean, const at::Tensor& x, const std::vector<std::unique_ptr<EstimatorInput>>& inputs,
                       int64_t step) const {
  std::vector<std::unique_ptr<NamedFunction>> functions;
  std::string why;
  for (const auto& input : inputs) {
    functions.push_back(NamedFunction::of(*input, mean.certificate.differentiates, options_.check, why));
    if (functions.back() != nullptr) continue;
    SpotCheck none;
    none.message = fmt::format("The hypergradient cannot be certified by slopes: {}", why);
    mean.certificate.spot_check = std::move(none);
    return;
  }
  take(mean, spot_check(mean, x, functions, Stream(options_.seed, "spot check").at(step), options_.check));
}

Record DoubleLoop::describe(const State& state, const Visit& visit) const {
  Record record;
  record.step = state.integer("step");
  record.outer_loss = visit.mean.outer_loss;
  record.inner_loss = visit.mean.inner_loss;
  record.hypergradient_norm = norm_of(visit.mean.value);
  record.stationarity = visit.mean.certificate.stationarity;
  record.metrics = visit.metrics;
  record.status = visit.status;
  record.grade = visit.mean.grade;
  record.message = visit.mean.message;
  record.certificate = visit.mean.certificate;
  record.cost = visit.cost;
  return record;
}

Record DoubleLoop::step(State& state, Hypergradient& taken, bool metrics) const {
  Examination examination = due(state);
  examination.metrics = metrics;
  Visit here = visit(state, examination);
  const Record record = describe(state, here);
  taken = std::move(here.mean);
  if (here.status != Status::kNonFinite) {
    const at::NoGradGuard no_grad;
    state.set("x", project(oracle_.problem(), outer_->step(state, state.tensor("x"), taken.value)));
  }
  state.set("step", state.integer("step") + 1);
  return record;
}

Record DoubleLoop::step(State& state, int64_t n) const {
  require(n >= 1, fmt::format("DoubleLoop::step: n = {}; at least one step can be done.", n));
  Hypergradient taken;
  Record record = step(state, taken);
  Cost cost = record.cost;
  for (int64_t i = 1; i < n; ++i) {
    const Record here = step(state, taken, /*metrics=*/false);  // the record has those of the first step
    if (failed(here.status) && !failed(record.status)) {
      record.status = here.status;
      record.grade = here.grade;
      record.message = here.message;
    }
    cost += here.cost;
  }
  record.cost = cost;
  return record;
}

Record DoubleLoop::evaluate(State& state) const {
  const Visit here = visit(state, {.bound = options_.bound_every > 0, .check = options_.check_every > 0});
  return describe(state, here);
}

Examination DoubleLoop::due(const State& state) const {
  const int64_t k = state.integer("step");
  const auto at = [k](int64_t every) { return every > 0 && k % every == 0; };
  return {.bound = at(options_.bound_every), .check = at(options_.check_every)};
}

Hypergradient DoubleLoop::hypergradient(const State& state, State* after, const Examination& examination) const {
  State copy = state;
  Examination asked = examination;
  asked.metrics = false;  // a Hypergradient has none
  Hypergradient found = visit(copy, asked).mean;
  if (after != nullptr) *after = std::move(copy);
  return found;
}

}  // namespace bilevel
