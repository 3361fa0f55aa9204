#include "bilevel/run/doctor.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "bilevel/core/clock.h"
#include "bilevel/core/config.h"
#include "bilevel/core/error.h"
#include "bilevel/core/memory_meter.h"
#include "bilevel/core/stream.h"
#include "bilevel/core/vectors.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/inner/step_size.h"
#include "bilevel/linear/registry.h"
#include "bilevel/oracle/counted.h"

namespace bilevel {
namespace {

/// Thrown out of an oracle call whose time or memory is up.
struct CutOff {
  std::string reason;
  bool memory = false;
};

/// Looks at clock and meter at each oracle call.
class Guard {
 public:
  Guard(double seconds, int64_t bytes) : seconds_(seconds), bytes_(bytes) {}
  void operator()() const {
    if (seconds_since(began_) > seconds_) throw CutOff{fmt::format("It was cut off after {:.1f} s.", seconds_)};
    if (bytes_ > 0 && meter_->current_bytes() > bytes_) {
      throw CutOff{fmt::format("It was cut off when it held {:.2g} GB.", 1e-9 * static_cast<double>(bytes_)), true};
    }
  }
  int64_t peak_bytes() const { return meter_->peak_bytes(); }
  double seconds() const { return seconds_since(began_); }

 private:
  double seconds_;
  int64_t bytes_;
  Clock::time_point began_ = Clock::now();
  std::shared_ptr<MemoryMeter> meter_ = std::make_shared<MemoryMeter>();
};

std::string text_of(const std::string& value) {
  return value.size() >= 2 && value.front() == '"' ? value.substr(1, value.size() - 2) : value;
}

std::string value_of(const EstimatorSettings& settings, const std::string& key) {
  for (const auto& [name, value] : settings) {
    if (name == key) return text_of(value);
  }
  return "";
}

EstimatorSettings with(EstimatorSettings settings, std::string key, std::string value) {
  settings.emplace_back(std::move(key), std::move(value));
  return settings;
}

std::unique_ptr<Estimator> make(const EstimatorSettings& settings, bool all_read = true) {
  Section section = Config::parse(to_toml(settings), "doctor").root();
  std::string name;
  section.read("estimator", name);
  auto estimator = make_estimator(name, section);
  bool ignored = false;
  section.read("warm_start", ignored);  // keys of the double loop, which stand in the same table
  for (const char* key : {"hvp_batch", "cross_batch"}) {
    int64_t batch = 0;
    section.read(key, batch);
  }
  int64_t draws = 1;
  section.read("variance_samples", draws);
  if (all_read) section.finish();
  return estimator;
}

/// Whether the estimator of these settings reads the last of them.
bool reads(const EstimatorSettings& settings) {
  try {
    make(settings);
    return true;
  } catch (const Error&) {
    return false;
  }
}

/// "implicit cg".
std::string family_of(const EstimatorSettings& settings) {
  const std::string solver = value_of(settings, "solver");
  return value_of(settings, "estimator") + (solver.empty() ? "" : " " + solver);
}

/// "implicit cg 20", "unrolled last 10": a column of a table is narrow.
std::string name_of(const EstimatorSettings& settings) {
  std::string name = family_of(settings);
  for (const auto& [key, value] : settings) {
    if (key == "estimator" || key == "solver") continue;
    const bool said = key == "iterations" || key == "memory" || key == "curvature";
    name += fmt::format(" {}{}", said ? "" : key == "steps" ? "last " : key + " ", text_of(value));
  }
  return name;
}

double relative(const at::Tensor& value, const at::Tensor& reference) {
  const double norm = norm_of(reference);
  return norm > 0 ? norm_of(value - reference) / norm : norm_of(value) > 0 ? std::numeric_limits<double>::infinity() : 0.0;
}

int64_t free_bytes() {
  const int64_t pages = sysconf(_SC_AVPHYS_PAGES), size = sysconf(_SC_PAGESIZE);
  return pages > 0 && size > 0 ? pages * size : 0;
}

/// Inner solves, estimates and their means over the inner problems.
class Clinic {
 public:
  Clinic(const DoctorSubject& subject, const DoctorOptions& options) : subject_(subject), options_(options) {
    bytes_ = options.bytes > 0 ? options.bytes : free_bytes() / 2;
  }

  Diagnosis run();

 private:
  int64_t slices() const { return subject_.oracle.problem().inner_problems(); }
  double left() const { return options_.seconds - seconds_since(began_); }
  void say(const std::string& doing) const {
    if (options_.progress) options_.progress(doing, std::min(1.0, seconds_since(began_) / options_.seconds));
  }

  InnerStart start_of(int64_t s, at::ScalarType dtype) const {
    InnerStart start;
    const Problem& problem = subject_.oracle.problem();
    if (!subject_.y.defined()) {
      start.y = problem.initial_inner(subject_.x, s).detach().to(dtype);
    } else {
      start.y = (slices() == 1 ? subject_.y : subject_.y.select(0, s)).to(dtype);
    }
    return start;
  }

  EstimatorInput input(const Oracle& oracle, const InnerSolver& solver, const at::Tensor& x, InnerSolution& solution,
                       int64_t s) const {
    Batch inner, outer;
    inner.step = solution.steps;
    inner.slice = outer.slice = s;
    inner.seed = Stream(subject_.seed, "inner products").at(s).seed();
    outer.seed = Stream(subject_.seed, "outer loss").at(s).seed();
    EstimatorInput in{oracle, solver, x, solution, inner, outer, {}};
    in.cold_start = !subject_.y.defined();
    in.start = start_of(s, x.scalar_type());
    return in;
  }

  void solve_once();
  Trial attempt(const EstimatorSettings& settings);
  void compare(Trial& trial, const at::Tensor& value) const;

  void find_reference();
  bool implicit_reference();
  void unrolled_reference();
  std::vector<InnerSolution> polish(std::vector<InnerSolution> solutions, double until) const;
  struct Exact {
    at::Tensor value, direct;
    double residual = 0;
    bool failed = false, cut_off = false;  // cut off: failed for want of time or memory, which says nothing about the problem
    std::string how;
  };
  Exact exact(std::vector<InnerSolution>& solutions, double until) const;
  void look_at_curvature(const InnerSolution& solution);

  void look_for_traps();
  void advise();

  const DoctorSubject& subject_;
  const DoctorOptions& options_;
  Clock::time_point began_ = Clock::now();
  int64_t bytes_ = 0;
  std::vector<InnerSolution> solutions_;  // of the bare solve
  Cost solve_cost_;
  at::Tensor reference_;  // double; undefined: none
  at::Tensor stopped_;    // the implicit hypergradient at the y that was reached, solved exactly; undefined: not known
  bool indefinite_ = false, singular_ = false, cut_off_ = false;
  Diagnosis out_;
};

InnerSolution copy_of(const InnerSolution& solution, at::ScalarType dtype) {
  InnerSolution copy;
  const auto cast = [dtype](const at::Tensor& t) { return t.defined() && t.is_floating_point() ? t.to(dtype) : t; };
  copy.y = cast(solution.y);
  for (const at::Tensor& t : solution.state) copy.state.push_back(cast(t));
  copy.state_steps = solution.state_steps;
  copy.status = solution.status;
  copy.message = solution.message;
  copy.loss = solution.loss;
  copy.stationarity = solution.stationarity;
  copy.initial_stationarity = solution.initial_stationarity;
  copy.steps = solution.steps;
  copy.previous = cast(solution.previous);
  copy.step_size = cast(solution.step_size);
  return copy;
}

void Clinic::solve_once() {
  say("the inner solve");
  const Guard guard(options_.seconds, bytes_);
  const CountedOracle oracle(subject_.oracle, guard);
  const Clock::time_point began = Clock::now();
  for (int64_t s = 0; s < slices(); ++s) {
    solutions_.push_back(subject_.solver.solve(oracle, subject_.x, s, start_of(s, subject_.x.scalar_type()), TrajectoryPolicy{}));
    const InnerSolution& solution = solutions_.back();
    out_.stationarity = std::max(out_.stationarity, solution.stationarity);
    out_.initial_stationarity = std::max(out_.initial_stationarity, solution.initial_stationarity);
    out_.inner_steps = std::max(out_.inner_steps, solution.steps);
    if (failed(solution.status)) out_.traps.push_back("The inner solve failed: " + solution.message);
  }
  out_.inner_seconds = seconds_since(began);
  solve_cost_ = oracle.cost();
  solve_cost_.peak_bytes = guard.peak_bytes();
}

void Clinic::compare(Trial& trial, const at::Tensor& value) const {
  if (!reference_.defined()) {
    trial.cosine = trial.norm_ratio = trial.error = std::numeric_limits<double>::quiet_NaN();
    return;
  }
  const at::Tensor v = value.to(at::kCPU, at::kDouble);
  const double a = norm_of(v), b = norm_of(reference_);
  trial.cosine = a > 0 && b > 0 ? v.dot(reference_).item<double>() / (a * b) : std::numeric_limits<double>::quiet_NaN();
  trial.norm_ratio = b > 0 ? a / b : std::numeric_limits<double>::quiet_NaN();
  trial.error = relative(v, reference_);
  if (stopped_.defined()) trial.error_there = relative(v, stopped_);
}

Trial Clinic::attempt(const EstimatorSettings& settings) {
  Trial trial;
  trial.settings = settings;
  trial.name = name_of(settings);
  trial.family = family_of(settings);
  std::unique_ptr<Estimator> estimator = make(settings);
  std::vector<std::string> objections = estimator->objections(subject_.oracle.problem(), subject_.solver);
  if (!objections.empty()) {
    trial.outcome = Trial::Outcome::kNotApplicable;
    trial.remark = objections.front();
    return trial;
  }
  if (left() <= 0) {
    trial.remark = "There was no time left for it.";
    return trial;
  }

  const TrajectoryPolicy policy = estimator->trajectory();
  const Guard guard(std::min(left(), options_.trial_seconds), bytes_);
  const CountedOracle oracle(subject_.oracle, guard);
  at::Tensor value;
  try {
    for (int64_t s = 0; s < slices(); ++s) {
      const InnerStart start = start_of(s, subject_.x.scalar_type());
      InnerSolution solution = policy.keep ? subject_.solver.solve(oracle, subject_.x, s, start, policy)
                                           : copy_of(solutions_[static_cast<size_t>(s)], subject_.x.scalar_type());
      const Hypergradient h = estimator->estimate(input(oracle, subject_.solver, subject_.x, solution, s));
      value = value.defined() ? value + h.value : h.value;
      trial.differentiates = h.certificate.differentiates;
      if (s == 0 || h.grade > trial.grade) trial.grade = h.grade, trial.remark = h.message;
    }
  } catch (const CutOff& cut) {
    trial.outcome = Trial::Outcome::kCutOff;
    trial.remark = cut.reason;
    trial.out_of_memory = cut.memory;
    return trial;
  } catch (const Error& error) {
    trial.outcome = Trial::Outcome::kNotApplicable;
    trial.remark = error.what();
    return trial;
  }
  trial.outcome = Trial::Outcome::kDone;
  const double seconds = guard.seconds();
  trial.cost = oracle.cost();
  trial.cost.peak_bytes = guard.peak_bytes();
  if (policy.keep) {
    trial.seconds = seconds;
    trial.estimate_seconds = std::max(0.0, seconds - out_.inner_seconds);
  } else {
    trial.estimate_seconds = seconds;
    trial.seconds = seconds + out_.inner_seconds;
    trial.cost += solve_cost_;
  }
  trial.cost.seconds = trial.seconds;
  compare(trial, value / static_cast<double>(slices()));
  return trial;
}

// --- The reference ---

/// Each inner problem solved on, as far as `until` seconds from the beginning allow.
std::vector<InnerSolution> Clinic::polish(std::vector<InnerSolution> solutions, double until) const {
  const Oracle& oracle = subject_.precise ? *subject_.precise : subject_.oracle;
  const InnerSolver& own = subject_.precise_solver ? *subject_.precise_solver : subject_.solver;
  const Problem& problem = oracle.problem();
  const at::Tensor x = subject_.x.to(at::kDouble);
  // L-BFGS goes to the minimum of g alone.
  const bool plain = own.coupled_weight_decay() == 0 && own.stops_at_stationarity() && !problem.has_inner_constraints() &&
                     !problem.has_optimality_map();
  for (size_t s = 0; s < solutions.size(); ++s) {
    const double goal = 1e-10 * std::max(solutions[s].initial_stationarity, 1e-300);
    for (int64_t round = 0; seconds_since(began_) < until && solutions[s].stationarity > goal; ++round) {
      const Guard guard(std::max(1.0, 1.5 * (until - seconds_since(began_))), bytes_);
      const CountedOracle watched(oracle, guard);
      const InnerStart start{.y = solutions[s].y};
      const auto slice = static_cast<int64_t>(s);
      try {
        InnerSolution next = plain ? Lbfgs(LbfgsOptions{.max_iterations = 200, .tolerance = goal, .memory = 20})
                                         .solve(watched, x, slice, start, TrajectoryPolicy{})
                                   : own.solve(watched, x, slice, start, TrajectoryPolicy{});
        if (failed(next.status) || !(next.stationarity < 0.9 * solutions[s].stationarity)) break;
        solutions[s].y = next.y;
        solutions[s].stationarity = next.stationarity;
        solutions[s].loss = next.loss;
      } catch (const CutOff&) {
        break;
      } catch (const Error&) {
        break;
      }
    }
    solutions[s].status = Status::kConverged;
  }
  return solutions;
}

/// The implicit hypergradient at these points, its linear system solved by its matrix or to convergence.
Clinic::Exact Clinic::exact(std::vector<InnerSolution>& solutions, double until) const {
  const Oracle& oracle = subject_.precise ? *subject_.precise : subject_.oracle;
  const InnerSolver& solver = subject_.precise_solver ? *subject_.precise_solver : subject_.solver;
  const Problem& problem = oracle.problem();
  const at::Tensor x = subject_.x.to(at::kDouble);
  // A singular matrix has no inverse, and its equation a solution all the same where the right-hand side is in its range.
  const bool dense = problem.inner_layout().size() <= options_.dense_up_to && !singular_;
  const bool symmetric = !problem.has_optimality_map() || problem.optimality_map_is_symmetric();
  EstimatorSettings settings = {{"estimator", "\"implicit\""}};
  settings = with(settings, "solver", dense ? "\"dense\"" : symmetric ? "\"cg\"" : "\"gmres\"");
  if (!dense) {
    settings = with(settings, "iterations", "60");  // at a time, so that a slow machine has something before its time is up
    settings = with(settings, "tolerance", "1e-11");
    for (const char* value : {"\"problem\"", "true"}) {  // the name of the option that takes Problem::inner_preconditioner
      for (const char* key : {"preconditioner", "precondition"}) {
        if (!problem.inner_preconditioner(x) || value_of(settings, key) != "") continue;
        if (reads(with(settings, key, value))) settings = with(settings, key, value);
      }
    }
  }
  const std::unique_ptr<Estimator> estimator = make(settings);
  Exact out;
  for (size_t s = 0; s < solutions.size(); ++s) {
    at::Tensor q;
    Hypergradient h;
    const auto slice = static_cast<int64_t>(s);
    double before = std::numeric_limits<double>::infinity();
    for (;;) {
      const Guard guard(std::max(1.0, 1.5 * (until - seconds_since(began_))), bytes_);
      const CountedOracle watched(oracle, guard);
      try {
        EstimatorInput in = input(watched, solver, x, solutions[s], slice);
        in.q0 = q;
        h = estimator->estimate(in);
      } catch (const CutOff&) {
        if (!h.value.defined()) {
          out.failed = out.cut_off = true;
          return out;
        }
        break;
      }
      q = h.q;
      const double residual = h.certificate.relative_residual.value_or(0.0);
      if (dense || !q.defined() || h.grade == Grade::kBad || residual < 1e-9 || residual > 0.7 * before ||
          seconds_since(began_) > until) {
        break;
      }
      before = residual;
    }
    out.failed = out.failed || h.grade == Grade::kBad || !std::isfinite(norm_of(h.value));
    out.residual = std::max(out.residual, h.certificate.relative_residual.value_or(0.0));
    const auto n = static_cast<double>(solutions.size());
    out.value = out.value.defined() ? out.value + h.value / n : h.value / n;
    out.direct = out.direct.defined() ? out.direct + h.direct / n : h.direct / n;
  }
  out.value = out.value.to(at::kCPU);
  out.how = dense ? fmt::format("the Hessian [{0}, {0}] solved directly, in double", problem.inner_layout().size())
                  : fmt::format("{} in double to a residual of {:.0e}", value_of(settings, "solver"), out.residual);
  return out;
}

void Clinic::look_at_curvature(const InnerSolution& solution) {
  const Oracle& oracle = subject_.precise ? *subject_.precise : subject_.oracle;
  const Problem& problem = oracle.problem();
  const at::Tensor x = subject_.x.to(at::kDouble);
  const int64_t dy = solution.y.numel();
  const auto linearization = oracle.linearize_inner(x, solution.y, Batch{});
  if (!linearization->symmetric()) return;
  const InnerSolver& solver = subject_.precise_solver ? *subject_.precise_solver : subject_.solver;
  Diagnosis::Reference& reference = out_.reference;
  if (dy <= options_.dense_up_to) {
    const at::NoGradGuard no_grad;
    std::vector<at::Tensor> rows;
    for (int64_t from = 0; from < dy; from += 64) {
      const int64_t size = std::min<int64_t>(64, dy - from);
      at::Tensor unit = at::zeros({size, dy}, solution.y.options());
      unit.diagonal(from).fill_(1);
      rows.push_back(linearization->jvp_y(unit).detach());
    }
    const at::Tensor H = at::cat(rows).to(at::kCPU);
    if (!H.isfinite().all().item<bool>()) return;
    const at::Tensor eigenvalues = at::linalg_eigvalsh(0.5 * (H + H.t())) + solver.coupled_weight_decay();
    reference.smallest = eigenvalues[0].item<double>();
    reference.largest = eigenvalues[-1].item<double>();
    reference.eigenvalues = true;
  } else {
    reference.largest = largest_curvature(*linearization, CurvatureOptions{.products = 12, .tolerance = 0.1});
    if (const double known = problem.inner_strong_convexity(x); known > 0) reference.smallest = known;
  }
}

/// False where the implicit function theorem cannot give a reference here.
bool Clinic::implicit_reference() {
  const Oracle& oracle = subject_.precise ? *subject_.precise : subject_.oracle;
  const InnerSolver& solver = subject_.precise_solver ? *subject_.precise_solver : subject_.solver;
  const EstimatorSettings any = {{"estimator", "\"implicit\""}, {"solver", "\"dense\""}};
  if (!make(any)->objections(oracle.problem(), solver).empty()) return false;
  const double share = options_.reference_share * options_.seconds;
  const double begun = seconds_since(began_);

  std::vector<InnerSolution> reached;
  for (const InnerSolution& solution : solutions_) reached.push_back(copy_of(solution, at::kDouble));
  say("the reference: curvature");
  try {
    look_at_curvature(reached.front());
  } catch (const CutOff&) {
  }
  const double rounding = 1e-10 * std::abs(out_.reference.largest.value_or(0.0));
  indefinite_ = out_.reference.eigenvalues && *out_.reference.smallest < -rounding;
  singular_ = out_.reference.eigenvalues && !indefinite_ && *out_.reference.smallest < rounding;
  say("the reference: at the y that the inner solve reached");
  const Exact at_reached = exact(reached, begun + 0.35 * share);
  if (!at_reached.failed) stopped_ = at_reached.value;
  if (at_reached.failed && !at_reached.cut_off && !out_.reference.eigenvalues) indefinite_ = true;
  if (indefinite_) return false;

  say("the reference: the inner problem solved on");
  std::vector<InnerSolution> polished = polish(std::move(reached), begun + 0.7 * share);
  double stationarity = 0, goal = 0;
  for (const InnerSolution& solution : polished) {
    stationarity = std::max(stationarity, solution.stationarity);
    goal = std::max(goal, 1e-6 * solution.initial_stationarity);
  }
  say("the reference: its linear system");
  const Exact found = exact(polished, begun + share);
  cut_off_ = found.cut_off;
  if (found.failed) return false;
  reference_ = found.value;
  Diagnosis::Reference& reference = out_.reference;
  reference.differentiates = "F";
  reference.norm = norm_of(found.value);
  reference.direct_norm = norm_of(found.direct);
  reference.stationarity = stationarity;
  reference.relative_residual = found.residual;
  reference.trusted = stationarity <= goal && found.residual < 1e-4;
  reference.how = fmt::format("The inner problem was solved on to ‖r‖ = {:.1e}, and the implicit system there by {}.",
                              stationarity, found.how);
  if (stopped_.defined()) reference.stopping_error = relative(stopped_, reference_);
  return true;
}

void Clinic::unrolled_reference() {
  const Oracle& oracle = subject_.precise ? *subject_.precise : subject_.oracle;
  const InnerSolver& solver = subject_.precise_solver ? *subject_.precise_solver : subject_.solver;
  const at::Tensor x = subject_.x.to(at::kDouble);
  const auto estimator = make({{"estimator", "\"unrolled\""}, {"memory", "\"checkpoints\""}});
  if (!estimator->objections(oracle.problem(), solver).empty()) return;
  say("the reference: the inner solve unrolled");
  const Guard guard(2 * options_.reference_share * options_.seconds, bytes_);
  const CountedOracle watched(oracle, guard);
  at::Tensor value, direct;
  double stationarity = 0;
  try {
    for (int64_t s = 0; s < slices(); ++s) {
      InnerSolution solution = solver.solve(watched, x, s, start_of(s, at::kDouble), estimator->trajectory());
      const Hypergradient h = estimator->estimate(input(watched, solver, x, solution, s));
      const auto n = static_cast<double>(slices());
      value = value.defined() ? value + h.value / n : h.value / n;
      direct = direct.defined() ? direct + h.direct / n : h.direct / n;
      stationarity = std::max(stationarity, solution.stationarity);
    }
  } catch (const CutOff&) {
    return;
  }
  if (!std::isfinite(norm_of(value))) return;
  reference_ = value.to(at::kCPU);
  Diagnosis::Reference& reference = out_.reference;
  reference.how = fmt::format("All {} steps of the inner solve were unrolled in double; ‖r‖ = {:.1e} was left.", out_.inner_steps,
                              stationarity);
  reference.differentiates = "F_T";
  reference.norm = norm_of(value);
  reference.direct_norm = norm_of(direct);
  reference.stationarity = stationarity;
  reference.trusted = true;
}

void Clinic::find_reference() {
  if (!implicit_reference()) unrolled_reference();
}

// --- What to make of it ---

void Clinic::look_for_traps() {
  const Diagnosis::Reference& reference = out_.reference;
  const auto trap = [this](std::string sentence) { out_.traps.push_back(std::move(sentence)); };
  if (reference.how.empty()) {
    trap(cut_off_ ? "No reference could be had in the time given (--seconds). Nothing is said about errors."
                  : "No reference could be had: the inner Hessian is indefinite or there is no optimality condition to "
                    "differentiate, and the inner solve cannot be unrolled in the time given. Nothing is said about errors.");
  } else if (!reference.trusted) {
    trap(
        fmt::format("The reference itself is not solved to the end (‖r‖ = {:.1e}, residual {:.1e}): errors below about its own "
                    "are not to be trusted.",
                    reference.stationarity, reference.relative_residual.value_or(0.0)));
  }
  if (reference.stopping_error && *reference.stopping_error > 0.01) {
    trap(fmt::format(
        "Far from stationary: the inner solve stops at ‖r‖ = {:.1e} (it began at {:.1e}), and at that y even the exact implicit "
        "hypergradient is {:.3g} % off dF/dx. More inner steps, or solver = \"lbfgs\" in [inner], would help more than "
        "another estimator.",
        out_.stationarity, out_.initial_stationarity, 100 * *reference.stopping_error));
  }
  if (indefinite_) {
    trap(fmt::format(
        "Indefinite: {}. Implicit estimators that need a positive definite Hessian fail or mislead; unroll, or use "
        "damping or curvature = \"gauss-newton\".",
        reference.eigenvalues
            ? fmt::format("the inner Hessian has eigenvalues from {:.2g} to {:.2g}", *reference.smallest, *reference.largest)
            : "the linear solve met negative curvature at the y that was reached"));
  }
  if (singular_) {
    trap(
        "Singular: the inner Hessian has directions without curvature (the biases of a softmax model are one), along which the "
        "solution is not unique. Iterative solvers are not disturbed, dense is; a ridge on all weights removes them.");
  }
  double condition = 0;
  if (reference.smallest && reference.largest && *reference.smallest > 0 && !singular_)
    condition = *reference.largest / *reference.smallest;
  if (condition > 1e4) {
    trap(fmt::format(
        "Ill-conditioned: curvatures from {}{:.2g} to {:.2g}, condition {:.1e}. CG needs about {:.0f} products for two "
        "digits; truncated series and short unrolls see the stiff directions only.",
        reference.eigenvalues ? "" : "at least ", *reference.smallest, *reference.largest, condition,
        std::ceil(0.5 * std::sqrt(condition) * std::log(200.0))));
  }
  double noise = std::numeric_limits<double>::infinity();
  if (subject_.x.scalar_type() == at::kFloat && stopped_.defined()) {
    for (const Trial& trial : out_.trials) {
      if (trial.outcome == Trial::Outcome::kDone && value_of(trial.settings, "estimator") == "implicit" && reference_.defined()) {
        noise = std::min(noise, trial.error);
      }
    }
    const double stop = reference.stopping_error.value_or(0.0);
    if (condition > 0 && condition * 1.2e-7 > 3e-3) {
      trap(
          fmt::format("Float noise: with condition {:.1e} the rounding of float32 alone may move the implicit part by {:.2g} %; "
                      "dtype = \"float64\" would not.",
                      condition, 100 * condition * 1.2e-7));
    } else if (std::isfinite(noise) && noise > 0.01 + 3 * stop && reference.trusted) {
      trap(fmt::format(
          "No implicit trial came nearer than {:.2g} %, although stopping early costs {:.2g} % only: more iterations, or "
          "dtype = \"float64\".",
          100 * noise, 100 * stop));
    }
  }
  if (reference_.defined() && reference.norm > 0 && norm_of(reference_) > 0) {
    const double share = std::abs(reference.direct_norm) / reference.norm;
    if (share > 50) {
      trap(fmt::format(
          "The direct part is {:.0f} times as large as their sum: direct and implicit part cancel, and small relative errors of "
          "the implicit part are large ones of the whole.",
          share));
    }
  }
  if (reference_.defined() && reference.norm == 0) {
    trap(
        "The hypergradient is zero at this point (an inner start of zeros can be one of symmetry): look again after some outer "
        "steps, "
        "with --after.");
  }
  std::vector<std::string> wrong;
  for (const Trial& trial : out_.trials) {
    if (trial.outcome == Trial::Outcome::kDone && trial.cosine < 0) wrong.push_back(trial.name);
  }
  if (!wrong.empty()) trap(fmt::format("These point the wrong way here: {}.", fmt::join(wrong, "; ")));
}

void Clinic::advise() {
  // Where the inner solve stops far from its solution no estimator can be near; which one to take is then seen by how near each
  // comes to the exact implicit hypergradient at the y that was reached.
  const bool stopped_early = out_.reference.stopping_error.value_or(0.0) > 0.05;
  const auto error_of = [stopped_early](const Trial& trial) {
    if (!stopped_early) return trial.error;
    return trial.differentiates == "F" ? trial.error_there.value_or(NAN) : NAN;
  };
  const auto cheapest = [&](double tolerance) {
    std::optional<size_t> found;
    double least = std::numeric_limits<double>::infinity();
    const auto good = [&](const Trial& t) {
      return t.outcome == Trial::Outcome::kDone && t.grade != Grade::kBad && error_of(t) <= tolerance;  // false for NaN
    };
    for (const Trial& t : out_.trials) {
      if (good(t)) least = std::min(least, t.seconds);
    }
    // Times that differ by less than this are the same: then what is configured already, else what is nearest.
    for (size_t i = 0; i < out_.trials.size(); ++i) {
      const Trial& t = out_.trials[i];
      if (!good(t) || t.seconds > 1.15 * least) continue;
      const bool keep =
          found && (out_.trials[*found].configured || (!t.configured && error_of(out_.trials[*found]) <= error_of(t)));
      if (!keep) found = i;
    }
    return found;
  };
  out_.within_1 = cheapest(0.01);
  out_.within_5 = cheapest(0.05);
  for (size_t i = 0; i < out_.trials.size(); ++i) {
    const Trial& t = out_.trials[i];
    if (t.outcome != Trial::Outcome::kDone || t.grade == Grade::kBad || !std::isfinite(error_of(t))) continue;
    if (!out_.best || error_of(t) < error_of(out_.trials[*out_.best])) out_.best = i;
  }
  const auto describe = [&](size_t i) {
    const Trial& t = out_.trials[i];
    return fmt::format("{} ({:.2g} % off{}, {:.2g} s a step, {:.3g} MB)", t.name, 100 * error_of(t), stopped_early ? " that" : "",
                       t.seconds, 1e-6 * static_cast<double>(t.cost.peak_bytes));
  };
  if (!out_.best) {
    out_.advice = "No trial can be recommended.";
    return;
  }
  const std::string what = stopped_early ? "that" : out_.reference.differentiates == "F" ? "dF/dx" : "the derivative of F_T";
  if (stopped_early) {
    out_.advice = fmt::format(
        "Solve the inner problem further first: where it stops now, the exact implicit hypergradient is itself {:.2g} % "
        "off dF/dx. ",
        100 * *out_.reference.stopping_error);
  }
  if (out_.within_1) {
    out_.advice += fmt::format("The cheapest within 1 % of {} is {}.", what, describe(*out_.within_1));
    if (out_.within_5 != out_.within_1) out_.advice += fmt::format(" 5 % are enough? Then {}.", describe(*out_.within_5));
  } else if (out_.within_5) {
    out_.advice += fmt::format("Nothing came within 1 % of {}. The cheapest within 5 % is {}.", what, describe(*out_.within_5));
  } else {
    out_.advice += fmt::format("Nothing came within 5 % of {}. The nearest is {}.", what, describe(*out_.best));
  }
  const auto configured = std::find_if(out_.trials.begin(), out_.trials.end(), [](const Trial& t) { return t.configured; });
  if (configured == out_.trials.end()) return;
  const auto own = static_cast<size_t>(configured - out_.trials.begin());
  if (configured->outcome != Trial::Outcome::kDone) {
    out_.advice +=
        fmt::format(" What the configuration has, {}, did not come to its end: {}", configured->name, configured->remark);
  } else if (out_.within_1 == own || (!out_.within_1 && out_.within_5 == own)) {
    out_.advice += " That is what the configuration has.";
  } else if (std::isfinite(configured->error)) {
    out_.advice += fmt::format(" What the configuration has, {}, is {:.3g} % off {}, at {:.2g} s a step.", configured->name,
                               100 * configured->error, out_.reference.differentiates == "F" ? "dF/dx" : "the derivative of F_T",
                               configured->seconds);
  }
}

Diagnosis Clinic::run() {
  const Problem& problem = subject_.oracle.problem();
  out_.configurable = subject_.configurable;
  out_.outer_size = problem.outer_layout().size();
  out_.inner_size = problem.inner_layout().size();
  solve_once();
  find_reference();

  std::vector<EstimatorSettings> all = estimators_to_try(out_.inner_steps, problem.has_outputs());
  std::string configured;
  if (!subject_.configured.empty()) {
    configured = to_toml(subject_.configured);
    std::erase_if(all, [&](const EstimatorSettings& one) { return to_toml(one) == configured; });
    all.insert(all.begin(), subject_.configured);
  }
  std::set<std::string> slow;  // families of which a cheaper one was cut off
  for (const EstimatorSettings& settings : all) {
    const std::string family = family_of(settings);
    const bool own = to_toml(settings) == configured;
    say(name_of(settings));
    Trial trial;
    if (slow.contains(family) && !own) {
      trial.settings = settings;
      trial.name = name_of(settings);
      trial.family = family;
      trial.remark = "A cheaper one of its kind was cut off already.";
    } else {
      trial = attempt(settings);
    }
    trial.configured = own;
    if (trial.outcome == Trial::Outcome::kCutOff && !trial.out_of_memory) slow.insert(family);
    out_.trials.push_back(std::move(trial));
  }
  look_for_traps();
  advise();
  out_.seconds = seconds_since(began_);
  return std::move(out_);
}

}  // namespace

std::string to_toml(const EstimatorSettings& settings) {
  std::string text;
  for (const auto& [key, value] : settings) text += fmt::format("{} = {}\n", key, value);
  return text;
}

std::string_view to_string(Trial::Outcome outcome) {
  switch (outcome) {
    case Trial::Outcome::kDone: return "done";
    case Trial::Outcome::kNotApplicable: return "not applicable";
    case Trial::Outcome::kCutOff: return "cut off";
    case Trial::Outcome::kLeftOut: return "left out";
  }
  return "unknown";
}

std::vector<std::string> DoctorOptions::violations() const {
  std::vector<std::string> found;
  if (!(seconds > 0)) found.push_back(fmt::format("seconds = {} is not positive", seconds));
  if (!(reference_share > 0 && reference_share < 1))
    found.push_back(fmt::format("reference_share = {} is not between 0 and 1", reference_share));
  if (!(trial_seconds > 0)) found.push_back(fmt::format("trial_seconds = {} is not positive", trial_seconds));
  if (bytes < 0) found.push_back(fmt::format("bytes = {} is negative", bytes));
  return found;
}

std::vector<EstimatorSettings> estimators_to_try(int64_t inner_steps, bool has_outputs) {
  std::vector<EstimatorSettings> families;
  for (const EstimatorRow& row : estimators()) {
    const EstimatorSettings plain = {{"estimator", '"' + row.name + '"'}};
    if (!reads(with(plain, "solver", "\"cg\""))) {
      families.push_back(plain);
      continue;
    }
    for (const SolverRow& solver : linear_solvers()) families.push_back(with(plain, "solver", '"' + solver.name + '"'));
  }
  // Rounds, so that a budget that ends early has seen something of every family.
  std::vector<EstimatorSettings> cheap, middle, dear;
  for (const EstimatorSettings& family : families) {
    const bool stepped = reads(with(family, "steps", "10"));
    if (reads(with(family, "iterations", "20"))) {
      cheap.push_back(with(family, "iterations", "5"));
      middle.push_back(with(family, "iterations", "20"));
      dear.push_back(with(family, "iterations", "100"));
      if (const auto gauss_newton = with(with(family, "iterations", "20"), "curvature", "\"gauss-newton\"");
          has_outputs && value_of(family, "solver") == "cg" && reads(gauss_newton)) {
        middle.push_back(gauss_newton);
      }
    } else if (stepped) {
      for (const int64_t last : {inner_steps / 10, inner_steps / 3}) {
        if (last > 0) cheap.push_back(with(family, "steps", std::to_string(last)));
      }
      middle.push_back(family);
      for (const char* memory : {"states", "checkpoints"}) {
        if (const auto kept = with(family, "memory", fmt::format("\"{}\"", memory)); reads(kept)) dear.push_back(kept);
      }
    } else if (!value_of(family, "solver").empty()) {
      middle.push_back(family);
    } else if (reads(with(family, "samples", "16")) || reads(with(family, "max_columns", "256"))) {
      dear.push_back(family);  // many inner solves, or all columns of x
    } else {
      cheap.push_back(family);
      const auto network = with(with(family, "adjoint", "\"network\""), "adjoint_steps", "300");
      if (has_outputs && reads(network)) dear.push_back(network);
    }
  }
  cheap.insert(cheap.end(), middle.begin(), middle.end());
  cheap.insert(cheap.end(), dear.begin(), dear.end());
  return cheap;
}

Diagnosis diagnose(const DoctorSubject& subject, const DoctorOptions& options) {
  for (const auto& violation : options.violations()) throw Error(fmt::format("diagnose: {}.", violation));
  require((subject.precise == nullptr) == (subject.precise_solver == nullptr),
          "diagnose: the problem in double needs its inner solver too, and the other way round.");
  require(subject.precise != nullptr || subject.x.scalar_type() == at::kDouble,
          "diagnose: x is in float; give the same problem in double too, for the reference.");
  return Clinic(subject, options).run();
}

}  // namespace bilevel
