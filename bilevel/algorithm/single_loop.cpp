#include "bilevel/algorithm/single_loop.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

#include "bilevel/algorithm/projection.h"
#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"
#include "bilevel/inner/solver_helpers.h"
#include "bilevel/inner/step_size.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/outer/step.h"

namespace bilevel {
namespace {

std::string before(const char* name) { return fmt::format("recursion.{}", name); }

void require_finite(double value, const char* name, std::vector<std::string>& found) {
  if (!(value > 0 && std::isfinite(value))) found.push_back(fmt::format("{} = {} must be finite and positive", name, value));
}

}  // namespace

std::vector<std::string> SingleLoopOptions::violations() const {
  std::vector<std::string> found;
  if (lr) require_finite(*lr, "lr", found);
  require_finite(outer_lr, "the outer lr", found);
  if (!(decay >= 0 && decay < 1)) found.push_back(fmt::format("decay = {} should be at least 0 and less than 1", decay));
  if (batch < 0) found.push_back(fmt::format("batch = {} is negative; 0 means all samples", batch));
  if (outer_batch < 0) found.push_back(fmt::format("the outer batch = {} is negative; 0 means all samples", outer_batch));
  return found;
}

void read(Section& inner, Section& outer, SingleLoopOptions& options) {
  read_lr(inner, options.lr);
  inner.read("decay", options.decay);
  inner.read("batch", options.batch);
  outer.read("lr", options.outer_lr);
  outer.read("batch", options.outer_batch);
  inner.check(options.violations());
}

void require_one_free_inner_problem(const Problem& problem, std::string_view name) {
  require_free(problem, name);
  require(problem.inner_problems() == 1,
          fmt::format("{} moves one y beside x, and this problem has {} inner problems; use \"double-loop\".", name,
                      problem.inner_problems()));
  require(!problem.initial_inner_depends_on_outer() && !problem.has_rule_hyperparameters(),
          fmt::format(
              "{} differentiates y*(x) alone, and in this problem x determines y₀ or the update rule; use \"double-loop\" with "
              "\"unrolled\".",
              name));
}

double step_size_at(const Oracle& oracle, const at::Tensor& x, const at::Tensor& y, std::optional<double> lr, uint64_t seed) {
  if (lr) return *lr;
  CurvatureOptions curvature;
  curvature.seed = seed;
  const double L = largest_curvature(*oracle.linearize_inner(x, y, {}), curvature);
  require(L > 0 && std::isfinite(L), fmt::format("lr = \"auto\": the curvature at the start is {}; give lr a number.", L));
  return 1 / L;
}

SingleLoop::SingleLoop(const Oracle& oracle, SingleLoopOptions options, std::string_view name)
    : oracle_(oracle),
      options_(options),
      inner_(oracle.problem().inner_samples(), std::min(options.batch, oracle.problem().inner_samples()),
             Stream(options.seed, "inner batches")),
      outer_(oracle.problem().outer_samples(), std::min(options.outer_batch, oracle.problem().outer_samples()),
             Stream(options.seed, "outer batches")) {
  const std::vector<std::string> violations = options_.violations();
  require(violations.empty(), fmt::format("{}: {}.", name, fmt::join(violations, "; ")));
  require_one_free_inner_problem(oracle.problem(), name);
}

State SingleLoop::init() const {
  const Problem& problem = oracle_.problem();
  const at::NoGradGuard no_grad;
  const at::Tensor x = problem.initial_outer().detach().clone(), y = problem.initial_inner(x, 0).detach().clone();
  check_point(problem, x, y, "SingleLoop::init");
  require_inside(problem, x);
  State state;
  state.set("x", x);
  state.set("y", y);
  state.set("q", at::zeros_like(y));
  state.set("step", int64_t{0});
  state.set("lr", step_size_at(oracle_, x, y, options_.lr, options_.seed));
  if (period() > 0) {
    for (const char* name : {"x", "y", "q"}) state.set(before(name), state.tensor(name).clone());
    state.set("recursion.inner", at::zeros({2 * y.numel() + x.numel()}, x.options()));
    state.set("recursion.outer", at::zeros({y.numel() + x.numel()}, x.options()));
  }
  add_to(state);
  return state;
}

/// What one call of `step` works with.
class SingleLoop::Walk {
 public:
  explicit Walk(const Oracle& oracle, const State& state)
      : oracle_(oracle),
        pass_(oracle.joint_pass()),
        x_(state.tensor("x").clone()),
        y_(state.tensor("y").clone()),
        q_(state.tensor("q").clone()),
        of_inner_(at::empty({2 * y_.numel() + x_.numel()}, x_.options())),
        of_outer_(at::empty({y_.numel() + x_.numel()}, x_.options())),
        constrained_(!oracle.problem().outer_constraints().empty()) {
    const int64_t dy = y_.numel(), dx = x_.numel();
    r_ = of_inner_.narrow(0, 0, dy);
    Hq_ = of_inner_.narrow(0, dy, dy);
    cross_ = of_inner_.narrow(0, 2 * dy, dx);
    f_y_ = of_outer_.narrow(0, 0, dy);
    f_x_ = of_outer_.narrow(0, dy, dx);
    if (!state.has("recursion.inner")) return;
    before_ = {state.tensor(before("x")).clone(), state.tensor(before("y")).clone(), state.tensor(before("q")).clone()};
    sum_of_inner_ = state.tensor("recursion.inner").clone();
    sum_of_outer_ = state.tensor("recursion.outer").clone();
  }

  void look(const Batch& inner, const Batch& outer) { look_at({x_, y_, q_}, inner, outer); }

  /// The sums become what was looked at, of all samples.
  void begin_recursion() {
    sum_of_inner_.copy_(of_inner_);
    sum_of_outer_.copy_(of_outer_);
  }

  /// What the batches, of these weights, say of the last move is added to the sums, which are what the step goes along.
  void go_on(const Batch& inner, double inner_weight, const Batch& outer, double outer_weight) {
    look_at(before_, inner, outer);
    add_scaled(sum_of_inner_, -inner_weight, of_inner_);
    add_scaled(sum_of_outer_, -outer_weight, of_outer_);
    look(inner, outer);
    add_scaled(sum_of_inner_, inner_weight, of_inner_);
    add_scaled(sum_of_outer_, outer_weight, of_outer_);
    of_inner_.copy_(sum_of_inner_);
    of_outer_.copy_(sum_of_outer_);
  }

  void move(double lr, double outer_lr, double damping) {
    if (before_.x.defined()) {
      before_.x.copy_(x_);
      before_.y.copy_(y_);
      before_.q.copy_(q_);
    }
    add_scaled(y_, -lr, r_);
    if (damping != 0) scale(q_, 1 - lr * damping);
    add_scaled(q_, -lr, Hq_);
    add_scaled(q_, lr, f_y_);
    add_scaled(x_, -outer_lr, f_x_);
    add_scaled(x_, outer_lr, cross_);
    if (constrained_) x_.copy_(project(oracle_.problem(), x_));
  }

  void describe(Record& record) const {
    record.inner_loss = g_;
    record.outer_loss = f_;
    record.hypergradient_norm = norm_of(f_x_ - cross_);
    record.stationarity = norm_of(r_);
    record.metrics = oracle_.problem().metrics(x_, y_);
  }

  void judge(Record& record) const {
    const bool finite = std::isfinite(g_) && std::isfinite(f_) && x_.isfinite().all().item<bool>() &&
                        y_.isfinite().all().item<bool>() && q_.isfinite().all().item<bool>();
    record.status = finite ? Status::kIterationLimit : Status::kNonFinite;
    if (finite) return;
    record.grade = Grade::kBad;
    record.message = "A loss, x, y or q is not finite: smaller steps may help.";
  }

  void write(State& state) const {
    state.set("x", x_);
    state.set("y", y_);
    state.set("q", q_);
    if (!before_.x.defined()) return;
    state.set(before("x"), before_.x);
    state.set(before("y"), before_.y);
    state.set(before("q"), before_.q);
    state.set("recursion.inner", sum_of_inner_);
    state.set("recursion.outer", sum_of_outer_);
  }

  const at::Tensor& of_inner() const { return of_inner_; }
  const at::Tensor& of_outer() const { return of_outer_; }

 private:
  struct Point {
    at::Tensor x, y, q;
  };
  void look_at(const Point& at, const Batch& inner, const Batch& outer) {
    g_ = pass_->inner(at.x, at.y, at.q, inner, r_, Hq_, cross_);
    f_ = pass_->outer(at.x, at.y, outer, f_y_, f_x_);
  }

  const Oracle& oracle_;
  const std::unique_ptr<JointPass> pass_;
  const at::Tensor x_, y_, q_, of_inner_, of_outer_;
  const bool constrained_;
  at::Tensor r_, Hq_, cross_, f_y_, f_x_;
  Point before_;  // undefined without a recursion
  at::Tensor sum_of_inner_, sum_of_outer_;
  double g_ = 0, f_ = 0;
};

Record SingleLoop::step(State& state, int64_t n) const {
  require(n >= 1, fmt::format("{}::step: n = {}; at least one step can be done.", name(), n));
  const CostSince cost(oracle_);
  const at::NoGradGuard no_grad;
  Walk walk(oracle_, state);
  const Reduction reduce = reduction(state);
  const int64_t first = state.integer("step"), every = period();
  const double lr = state.number("lr"), outer_lr = options_.outer_lr * outer_scale(state);
  const double damping = state.has("damping") ? state.number("damping") : 0.0;
  const bool random = oracle_.problem().draws_random_numbers();
  Record record;
  record.step = first;
  Batch inner, outer;
  for (int64_t t = first; t < first + n; ++t) {
    const int64_t i = inner_.number(t), j = outer_.number(t);
    inner.step = outer.step = t;
    inner.samples = inner_.samples(i);
    outer.samples = outer_.samples(j);
    if (random) {
      inner.seed = Stream(options_.seed, "inner loss").at(t).seed();
      outer.seed = Stream(options_.seed, "outer loss").at(t).seed();
    }
    if (every == 0) {
      walk.look(inner, outer);
      if (inner_.weight(i) != 1) scale(walk.of_inner(), inner_.weight(i));
      if (outer_.weight(j) != 1) scale(walk.of_outer(), outer_.weight(j));
    } else if (t % every == 0) {
      inner.samples = outer.samples = at::Tensor();
      walk.look(inner, outer);
      walk.begin_recursion();
    } else {
      walk.go_on(inner, inner_.weight(i), outer, outer_.weight(j));
    }
    if (reduce) {
      reduce(Level::kInner, i, walk.of_inner());
      reduce(Level::kOuter, j, walk.of_outer());
    }
    if (t == first) walk.describe(record);
    const double shrink = options_.decay == 0 ? 1.0 : std::pow(static_cast<double>(t + 1), -options_.decay);
    walk.move(lr * shrink, outer_lr * shrink, damping);
  }
  walk.judge(record);
  walk.write(state);
  state.set("step", first + n);
  record.cost = cost();
  return record;
}

Record SingleLoop::evaluate(State& state) const {
  const CostSince cost(oracle_);
  const at::NoGradGuard no_grad;
  Walk walk(oracle_, state);
  Batch batch;
  batch.step = state.integer("step");
  walk.look(batch, batch);
  Record record;
  record.step = batch.step;
  walk.describe(record);
  walk.judge(record);
  record.cost = cost();
  return record;
}

}  // namespace bilevel
