#include "bilevel/algorithm/bome.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "bilevel/algorithm/projection.h"
#include "bilevel/algorithm/single_loop.h"
#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/core/vectors.h"
#include "bilevel/inner/solver_helpers.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/outer/step.h"

namespace bilevel {

std::vector<std::string> BomeOptions::violations() const {
  std::vector<std::string> found;
  if (lr && !(*lr > 0 && std::isfinite(*lr))) found.push_back(fmt::format("lr = {} must be finite and positive", *lr));
  if (!(outer_lr > 0 && std::isfinite(outer_lr)))
    found.push_back(fmt::format("the outer lr = {} must be finite and positive", outer_lr));
  if (!(y_lr >= 0 && std::isfinite(y_lr))) found.push_back(fmt::format("y_lr = {} must be finite and at least 0", y_lr));
  if (batch < 0) found.push_back(fmt::format("batch = {} is negative; 0 means all samples", batch));
  if (outer_batch < 0) found.push_back(fmt::format("the outer batch = {} is negative; 0 means all samples", outer_batch));
  if (inner_steps < 1) found.push_back(fmt::format("steps = {} must be at least 1", inner_steps));
  if (!(eta > 0 && std::isfinite(eta))) found.push_back(fmt::format("eta = {} must be finite and positive", eta));
  return found;
}

void read(Section& inner, Section& outer, BomeOptions& options) {
  read_lr(inner, options.lr);
  inner.read("steps", options.inner_steps);
  inner.read("batch", options.batch);
  outer.read("lr", options.outer_lr);
  outer.read("y_lr", options.y_lr);
  outer.read("eta", options.eta);
  outer.read("batch", options.outer_batch);
  inner.check(options.violations());
}

/// What the state moves along, and the losses and norms at its point.
struct Bome::Direction {
  at::Tensor x, y;
  Record record;
};

Bome::Bome(const Oracle& oracle, BomeOptions options)
    : oracle_(oracle),
      options_(options),
      inner_(BatchPlan::of_size(oracle.problem().inner_samples(), options.batch, Stream(options.seed, "inner batches"))),
      outer_(BatchPlan::of_size(oracle.problem().outer_samples(), options.outer_batch, Stream(options.seed, "outer batches"))) {
  const std::vector<std::string> violations = options_.violations();
  require(violations.empty(), fmt::format("bome: {}.", fmt::join(violations, "; ")));
  require_one_free_inner_problem(oracle.problem(), name());
  require_loss(oracle.problem(), name());
}

State Bome::init() const {
  const Problem& problem = oracle_.problem();
  const at::NoGradGuard no_grad;
  const at::Tensor x = problem.initial_outer().detach().clone(), y = problem.initial_inner(x, 0).detach().clone();
  check_point(problem, x, y, "Bome::init");
  require_inside(problem, x);
  State state;
  state.set("x", x);
  state.set("y", y);
  state.set("step", int64_t{0});
  state.set("lr", step_size_at(oracle_, x, y, options_.lr, options_.seed));
  return state;
}

Bome::Direction Bome::direction(const State& state, const Batch& batch, const Batch& outer_batch) const {
  const at::Tensor x = state.tensor("x"), y = state.tensor("y");
  const double lr = state.number("lr");
  const Gradients inner = oracle_.inner(x, y, batch), outer = oracle_.outer(x, y, outer_batch);
  at::Tensor solved = sum_of(y, -lr, inner.y);
  for (int64_t k = 1; k < options_.inner_steps; ++k) solved = sum_of(solved, -lr, oracle_.inner(x, solved, batch).y);
  const at::Tensor gap_x = sum_of(oracle_.inner_grad_x(x, y, batch), -1, oracle_.inner_grad_x(x, solved, batch));
  const double square = dot_of(gap_x, gap_x) + dot_of(inner.y, inner.y);
  const double along = dot_of(outer.x, gap_x) + dot_of(outer.y, inner.y);
  // Where there is no gap left, none has to fall.
  const double lambda = square > 0 ? std::max(options_.eta * square - along, 0.0) / square : 0.0;

  Direction found{sum_of(outer.x, lambda, gap_x), sum_of(outer.y, lambda, inner.y), {}};
  Record& record = found.record;
  record.step = batch.step;
  record.outer_loss = outer.value.item<double>();
  record.inner_loss = inner.value.item<double>();
  record.hypergradient_norm = norm_of(found.x);
  record.stationarity = norm_of(inner.y);
  const bool finite = std::isfinite(record.outer_loss) && std::isfinite(record.inner_loss) && std::isfinite(lambda) &&
                      std::isfinite(record.hypergradient_norm) && std::isfinite(norm_of(found.y));
  record.status = finite ? Status::kIterationLimit : Status::kNonFinite;
  if (!finite) {
    record.grade = Grade::kBad;
    record.message = "A loss or the direction is not finite: smaller steps may help.";
  }
  return found;
}

Record Bome::step(State& state, int64_t n) const {
  require(n >= 1, fmt::format("bome::step: n = {}; at least one step can be done.", n));
  const CostSince cost(oracle_);
  const at::NoGradGuard no_grad;
  Record record;
  for (int64_t i = 0; i < n; ++i) {
    Batch inner, outer;
    inner.step = outer.step = state.integer("step");
    inner.samples = inner_.samples(inner.step);
    outer.samples = outer_.samples(outer.step);
    inner.seed = Stream(options_.seed, "inner loss").at(inner.step).seed();
    outer.seed = Stream(options_.seed, "outer loss").at(outer.step).seed();
    Direction along = direction(state, inner, outer);
    const bool bad = failed(along.record.status);
    if (i == 0) {
      record = along.record;
      record.metrics = oracle_.problem().metrics(state.tensor("x"), state.tensor("y"));
    } else if (bad) {
      record.status = along.record.status;
      record.grade = along.record.grade;
      record.message = along.record.message;
    }
    if (!bad) {
      const at::Tensor x = sum_of(state.tensor("x"), -options_.outer_lr * outer_scale(state), along.x);
      state.set("x", project(oracle_.problem(), x));
      state.set("y", sum_of(state.tensor("y"), -(options_.y_lr > 0 ? options_.y_lr : state.number("lr")), along.y));
    }
    state.set("step", state.integer("step") + 1);
  }
  record.cost = cost();
  return record;
}

Record Bome::evaluate(State& state) const {
  const CostSince cost(oracle_);
  const at::NoGradGuard no_grad;
  Batch batch;
  batch.step = state.integer("step");
  Record record = direction(state, batch, batch).record;
  record.metrics = oracle_.problem().metrics(state.tensor("x"), state.tensor("y"));
  record.cost = cost();
  return record;
}

}  // namespace bilevel
