// A batch of m samples, drawn from a step's batch, has weights w_i/m, so that SᵀS of its scores estimates the Fisher information
// of all samples without bias; the tracker takes the mean over steps.
//
// Beside the likelihood a ridge λ is in the Hessian, and what the inner rule adds to the gradient: with r̂ as in optimality.h,
// ∂y r̂ = F + diag(λ + shift).
#include "bilevel/hypergrad/fisher.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/hypergrad/assembly.h"
#include "bilevel/hypergrad/optimality.h"
#include "bilevel/linear/kronecker_inverse.h"
#include "bilevel/linear/overlapped_tracker.h"

namespace bilevel {
namespace {

/// r with nothing but the ridge in its derivative by y.
class RidgeAlone final : public Linearization {
 public:
  RidgeAlone(Linearization& r, const at::Tensor& ridge) : r_(r), ridge_(ridge) {}
  at::Tensor value() override { return r_.value(); }
  at::Tensor residual() override { return r_.residual(); }
  at::Tensor grad_x() override { return r_.grad_x(); }
  at::Tensor jvp_y(const at::Tensor& v) override { return ridge_ * v; }
  Vjp vjp(const at::Tensor& w) override { return {ridge_ * w, r_.vjp(w).x}; }
  at::Tensor jvp_x(const at::Tensor& u) override { return r_.jvp_x(u); }
  at::Tensor gauss_newton(const at::Tensor& v) override { return ridge_ * v; }

 private:
  Linearization& r_;
  const at::Tensor ridge_;
};

Batch some_of(Batch batch, int64_t count, Draw draw, int64_t all) {
  const int64_t n = batch.size(all);
  if (count > 0 && count < n) {
    const at::Tensor which = draw.integers(n, {count});
    batch.samples = batch.full() ? which : batch.samples.index_select(0, which.to(batch.samples.device()));
  }
  batch.seed = draw.seed();
  return batch;
}

}  // namespace

std::vector<std::string> FisherOptions::violations() const {
  std::vector<std::string> found;
  if (scores < 0) found.push_back(fmt::format("scores should be at least 0 (all samples of the batch), got {}.", scores));
  if (steps < 0) found.push_back(fmt::format("steps should be at least 0 (the end of the solve alone), got {}.", steps));
  if (window < 1) found.push_back(fmt::format("window should be at least 1, got {}.", window));
  if (!(smoothing > 0 && smoothing < 1)) {
    found.push_back(fmt::format("smoothing should lie between 0 and 1, both excluded, got {}.", smoothing));
  }
  if (!(damping >= 0 && std::isfinite(damping))) found.push_back(fmt::format("damping should be at least 0, got {}.", damping));
  if (overlap && form == Form::kWindow) {
    found.push_back("overlap has nothing to do for the form \"window\", all of whose work waits for the end of the solve.");
  }
  return found;
}

void read(Section& section, FisherOptions& options) {
  section.read_choice("form", options.form, {"window", "dense", "kronecker"});
  section.read_choice("labels", options.labels, {"observed", "sampled", "enumerated"});
  section.read("scores", options.scores);
  section.read("steps", options.steps);
  section.read("window", options.window);
  section.read("smoothing", options.smoothing);
  section.read("damping", options.damping);
  section.read("overlap", options.overlap);
  section.check(options.violations());
}

Fisher::Fisher(FisherOptions options) : options_(options) {
  for (const auto& violation : options_.violations()) throw Error("Fisher: " + violation);
}

TrajectoryPolicy Fisher::trajectory() const {
  return {.keep = options_.steps > 0, .memory = Memory::kStates, .last = options_.steps};
}

std::vector<std::string> Fisher::objections(const Problem& problem, const InnerSolver& solver) const {
  if (!problem.has_inner_likelihood() || problem.inner_samples() == 0) {
    return {
        "\"fisher\" needs an inner loss that is a negative log-likelihood of samples (Problem::has_inner_likelihood), and this "
        "problem "
        "does not offer it as one. Use estimator = \"implicit\"."};
  }
  std::vector<std::string> objections = object_to_parts_beyond_the_inner_problem(problem, solver);
  for (auto& one : object_to_constraints(problem, name())) objections.push_back(std::move(one));
  for (auto& one : object_to_stopping_elsewhere(solver)) objections.push_back(std::move(one));
  return objections;
}

/// The tracked mean, step after step.
class Fisher::Mean final : public Follower {
 public:
  Mean(const FisherOptions& options, const EstimatorInput& in)
      : options_(options),
        oracle_(in.oracle),
        x_(in.x),
        stream_(in.inner_batch.seed, "fisher"),
        // What a solve from y₀ went through says nothing of where the next one goes.
        before_(in.cold_start ? Tensors{} : in.carried) {}

  void see(const Point& before, const Batch& batch, int64_t t) override { add(before.y, batch, t); }

  void add(const at::Tensor& y, const Batch& batch, int64_t t) {
    const at::NoGradGuard no_grad;
    const int64_t n = oracle_.problem().inner_samples();
    const at::Tensor S = oracle_.scores(x_, y, some_of(batch, options_.scores, stream_.at(t), n), options_.labels).flatten(0, 1);
    if (steps_ == 0) {
      first_ = t;
      begin(S.size(0));
    }
    tracker_->take(S);
    scores_ += S.size(0);
    ++steps_;
  }

  bool saw(int64_t first, int64_t end) const { return steps_ > 0 && first_ == first && first_ + steps_ == end; }
  int64_t scores() const { return scores_; }
  int64_t steps() const { return steps_; }
  InverseTracker& tracker() { return *tracker_; }
  void report(Cost& cost) const {
    if (overlapped_ == nullptr) return;
    cost.second_thread_seconds = overlapped_->busy_seconds();
    cost.hidden_seconds = overlapped_->hidden_seconds();
  }

 private:
  void begin(int64_t block_rows) {
    using Form = FisherOptions::Form;
    if (options_.form == Form::kWindow) tracker_ = std::make_unique<WindowedInverse>(options_.window, block_rows, before_);
    if (options_.form == Form::kDense) tracker_ = std::make_unique<SmoothedInverse>(options_.smoothing, before_);
    if (options_.form == Form::kKronecker) {
      tracker_ = std::make_unique<KroneckerInverse>(options_.smoothing, oracle_.problem().inner_layout(), before_);
    }
    if (!options_.overlap) return;
    auto overlapped = std::make_unique<OverlappedTracker>(std::move(tracker_));
    overlapped_ = overlapped.get();
    tracker_ = std::move(overlapped);
  }

  const FisherOptions options_;
  const Oracle& oracle_;
  const at::Tensor x_;
  const Stream stream_;
  const Tensors before_;
  std::unique_ptr<InverseTracker> tracker_;
  const OverlappedTracker* overlapped_ = nullptr;
  int64_t first_ = 0, steps_ = 0, scores_ = 0;
};

std::shared_ptr<Follower> Fisher::follower(const EstimatorInput& in) const {
  return options_.overlap ? std::make_shared<Mean>(options_, in) : nullptr;
}

// Over the points that the inner solve went through, the oldest first, or of its end where no way there was kept.
std::shared_ptr<Fisher::Mean> Fisher::mean(const EstimatorInput& in) const {
  Trajectory* way = in.solution.trajectory.get();
  if (way != nullptr) {
    auto seen = std::dynamic_pointer_cast<Mean>(way->follower());
    if (seen && seen->saw(way->first(), way->size())) return seen;
  }
  auto mean = std::make_shared<Mean>(options_, in);
  if (way == nullptr || way->size() == way->first()) {
    mean->add(in.solution.y, in.inner_batch, 0);
    return mean;
  }
  std::vector<at::Tensor> y;
  for (int64_t t = way->size() - 1; t >= way->first(); --t) y.push_back(way->take_point(t).y);
  for (int64_t t = way->first(); t < way->size(); ++t, y.pop_back()) mean->add(y.back(), way->batch(t), t);
  return mean;
}

Hypergradient Fisher::estimate(const EstimatorInput& in) const {
  const at::NoGradGuard no_grad;
  const Problem& problem = in.oracle.problem();
  const Gradients outer = in.oracle.outer(in.x, in.solution.y, in.outer_batch);
  Hypergradient h = direct_term(in, outer, "F, with the Fisher information for the Hessian");
  h.certificate.bias = "the Fisher information of scores along the inner solve stands for the Hessian";
  h.certificate.bound_reason = "No bound: the Fisher information stands for the Hessian.";
  h.q = at::zeros_like(outer.y);

  const auto r = in.oracle.linearize_inner(in.x, in.solution.y, in.batch_of_cross_product());
  RidgeAlone ridge_alone(*r, problem.inner_likelihood(in.x, in.inner_batch).ridge);
  const Optimality moved = optimality(in.solver, problem, in.x, in.solution.y, ridge_alone);
  Linearization& optimum = moved.linearization ? *moved.linearization : ridge_alone;
  const at::Tensor ridge = optimum.jvp_y(at::ones_like(outer.y)) + (options_.damping + in.damping);
  if (!optimum.symmetric() || !ridge.gt(0).all().item<bool>()) {
    demote(h, Grade::kBad,
           "What stands beside the likelihood in the inner problem is no positive ridge for each weight: give damping, or a "
           "smaller step "
           "where a decoupled decay is far from rest.");
    check_finite(h, in.solution);
    return h;
  }

  const std::shared_ptr<Mean> scores = mean(in);
  InverseTracker& inverse = scores->tracker();
  const bool positive = inverse.settle(ridge);
  if (positive) h.q = inverse.solve(outer.y, ridge);
  h.carried = inverse.state();
  scores->report(h.cost);
  h.value = outer.x - optimum.vjp(h.q).x;
  h.message =
      fmt::format("The Fisher information of {} scores along {} inner steps stands for the Hessian; no product with the Hessian.",
                  scores->scores(), in.solution.trajectory ? scores->steps() : 0);
  if (!positive)
    demote(h, Grade::kBad, "The smoothed Fisher information is not positive definite to rounding: give more damping.");
  check_finite(h, in.solution);
  return h;
}

}  // namespace bilevel
