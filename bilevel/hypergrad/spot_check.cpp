// s(h) = [F(x + h d) − F(x − h d)] / 2h = dᵀ∇F + h² c + …,     slope = [4 s(h/2) − s(h)] / 3
#include "bilevel/hypergrad/spot_check.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"
#include "bilevel/hypergrad/active_set_newton.h"
#include "bilevel/hypergrad/assembly.h"
#include "bilevel/inner/rule_solver.h"

namespace bilevel {
namespace {

/// y moved by some units in the last place: what it changes is noise.
at::Tensor jittered(const at::Tensor& y) {
  const at::Tensor z = Stream(0, "spot check noise").at(0).normal({y.size(0)}).to(y.options());
  return y + 4 * rounding_unit(y) * y * z;
}

double noise_of(double value, double other, const at::Tensor& y) {
  return kRoundingSafety * std::abs(value - other) + rounding_unit(y) * std::abs(value);
}

class AtTheOptimum final : public NamedFunction {
 public:
  AtTheOptimum(const EstimatorInput& in, const SpotCheckOptions& options)
      : in_(in), options_(options), newton_(in, {.dense_dim = options.dense_dim, .products = options.products, .steps = 30}) {
    // The first solve, at x itself, is where those beside it begin.
    reached_ = newton_.solve(in.x, in.solution.y);
    y_ = newton_.y();
    const double value = outer(in.x, y_), left = left_by_rounding();
    newton_.solve(in.x, jittered(y_), options.target);
    noise_ = std::max(noise_of(value, outer(in.x, newton_.y()), y_), left);
  }
  Value at(const at::Tensor& x) const override {
    Value found;
    found.reached = newton_.solve(x, y_, options_.target) && reached_;
    found.value = outer(x, newton_.y());
    found.noise = noise_;
    return found;
  }
  std::string description() const override { return "the inner problem solved anew"; }

 private:
  // A residual of the size of rounding stays, in no direction that is known, and moves f by q times as much.
  double left_by_rounding() {
    if (!reached_ || newton_.dim() == 0) return 0;
    InnerNewton& newton = newton_.newton();
    newton.renew();
    const at::Tensor q =
        newton.inverse().apply_transposed(newton_.input().oracle.outer(in_.x, newton.place().y, in_.outer_batch).y, 0.1);
    return 2 * newton.rounding_of_r() * norm_of(q) / std::sqrt(static_cast<double>(newton_.dim()));
  }
  double outer(const at::Tensor& x, const at::Tensor& y) const {
    return in_.oracle.outer_value(x, y, in_.outer_batch).item<double>();
  }
  const EstimatorInput& in_;
  const SpotCheckOptions& options_;
  mutable ActiveSetNewton newton_;
  bool reached_ = false;
  at::Tensor y_;
  double noise_ = 0;
};

class AfterSteps final : public NamedFunction {
 public:
  /// The last `last` of the steps depend on x, the others are done at in.x.
  AfterSteps(const EstimatorInput& in, const RuleSolver& solver, int64_t last)
      : in_(in), solver_(solver), steps_(in.solution.steps), first_(std::max<int64_t>(0, steps_ - last)) {
    point_ = start();
    for (int64_t t = 0; t < first_; ++t) point_ = solver_.replay(context(in.x), point_, t);
    const at::Tensor y = run(in.x, point_);
    repeats_ = norm_of(y - in.solution.y) <= 1e-3 * norm_of(in.solution.y) + 1e-12;
    Point other = point_;
    other.y = jittered(other.y);
    noise_ = noise_of(outer(in.x, y), outer(in.x, run(in.x, other)), y);
  }
  bool repeats() const { return repeats_; }
  Value at(const at::Tensor& x) const override {
    Value found;
    found.value = outer(x, run(x, first_ == 0 ? start_at(x) : point_));
    found.noise = noise_;
    return found;
  }
  std::string description() const override { return fmt::format("{} inner steps done again", steps_ - first_); }

 private:
  // lr as it was in the solve: one that was found from the curvature at x is not a part of F_T.
  SolveContext context(const at::Tensor& x) const {
    Tensors h = solver_.rule().default_h(in_.start.y);
    const auto names = solver_.rule().hyperparameters();
    const auto lr = std::find(names.begin(), names.end(), "lr");
    if (lr != names.end()) {
      const auto i = static_cast<size_t>(lr - names.begin());
      if (solver_.options().lr) {
        h[i] = at::scalar_tensor(*solver_.options().lr, in_.start.y.options());
      } else if (in_.solution.step_size.defined()) {
        h[i] = in_.solution.step_size;
      }
    }
    return {in_.oracle, x, in_.inner_batch.slice, in_.start.first_step, h};
  }
  Point start() const { return start_at(in_.x); }
  Point start_at(const at::Tensor& x) const {
    const at::NoGradGuard no_grad;
    const Problem& problem = in_.oracle.problem();
    const bool moves = in_.cold_start && problem.initial_inner_depends_on_outer();
    const at::Tensor y = moves ? problem.initial_inner(x, in_.inner_batch.slice).detach() : in_.start.y.detach();
    const bool carried = !in_.start.state.empty() && solver_.options().carry_state;
    return {y, carried ? in_.start.state : solver_.rule().fresh_state(y), carried ? in_.start.state_steps : 0};
  }
  at::Tensor run(const at::Tensor& x, Point point) const {
    const SolveContext here = context(x);
    for (int64_t t = first_; t < steps_; ++t) point = solver_.replay(here, point, t);
    return point.y;
  }
  double outer(const at::Tensor& x, const at::Tensor& y) const {
    return in_.oracle.outer_value(x, y, in_.outer_batch).item<double>();
  }
  const EstimatorInput& in_;
  const RuleSolver& solver_;
  int64_t steps_, first_;
  Point point_;
  bool repeats_ = false;
  double noise_ = 0;
};

/// f(x, y_T − η [∂y g(x, y_{T−1}) − ∂y g(x₀, y_{T−1})]): the last step as plain gradient descent.
class AfterOnePlainStep final : public NamedFunction {
 public:
  explicit AfterOnePlainStep(const EstimatorInput& in) : in_(in), step_(inner_step_size(in)) {
    base_ = gradient(in.x);
    const double value = outer(in.x, in.solution.y);
    noise_ = noise_of(value, outer(in.x, jittered(in.solution.y)), in.solution.y);
  }
  Value at(const at::Tensor& x) const override {
    return {outer(x, in_.solution.y - step_ * (gradient(x) - base_)), noise_, true};
  }
  std::string description() const override { return "the last inner step done again, as plain gradient descent"; }

 private:
  at::Tensor gradient(const at::Tensor& x) const { return in_.oracle.inner(x, in_.solution.previous, in_.inner_batch).y; }
  double outer(const at::Tensor& x, const at::Tensor& y) const {
    return in_.oracle.outer_value(x, y, in_.outer_batch).item<double>();
  }
  const EstimatorInput& in_;
  at::Tensor step_, base_;
  double noise_ = 0;
};

/// K of "F_T, last K steps…"; 0: the name says something else.
int64_t steps_named(const std::string& name) {
  constexpr std::string_view kLast = "F_T, last ";
  if (!name.starts_with(kLast)) return 0;
  if (name.starts_with("F_T, last step")) return 1;
  int64_t steps = 0;
  std::from_chars(name.data() + kLast.size(), name.data() + name.size(), steps);
  return steps;
}

NamedFunction::Value mean_at(const at::Tensor& x, const std::vector<std::unique_ptr<NamedFunction>>& functions) {
  NamedFunction::Value mean;
  for (const auto& function : functions) {
    const NamedFunction::Value one = function->at(x);
    mean.value += one.value / static_cast<double>(functions.size());
    mean.noise += one.noise / static_cast<double>(functions.size());
    mean.reached = mean.reached && one.reached && std::isfinite(one.value);
  }
  return mean;
}

struct Measured {
  SpotCheck::Slope slope;
  bool reached = true;
};

Measured measure(const at::Tensor& x, const at::Tensor& d, double h,
                 const std::vector<std::unique_ptr<NamedFunction>>& functions) {
  Measured out;
  double noise = 0;
  const auto difference = [&](double step) {
    const NamedFunction::Value plus = mean_at(x + step * d, functions), minus = mean_at(x - step * d, functions);
    noise = std::max(plus.noise, minus.noise) / step;
    out.reached = out.reached && plus.reached && minus.reached;
    return (plus.value - minus.value) / (2 * step);
  };
  out.slope.step = h;
  out.slope.coarse = difference(h);
  out.slope.fine = difference(h / 2);
  out.slope.measured = (4 * out.slope.fine - out.slope.coarse) / 3;
  out.slope.uncertainty = std::max(std::abs(out.slope.fine - out.slope.coarse), noise);
  return out;
}

/// The slope along d at the step size where it is known best; none: no solve beside x got where it should.
std::optional<SpotCheck::Slope> slope_along(const at::Tensor& d, const at::Tensor& x,
                                            const std::vector<std::unique_ptr<NamedFunction>>& functions, double size,
                                            double weight, const SpotCheckOptions& options) {
  // Far beyond rounding for a large x, and of the size of 1 for others: x may be a logarithm, whatever its value.
  const double quarter = std::pow(rounding_unit(x), 0.25);
  const double spread = std::max(1.0, quarter * norm_of(x) / std::sqrt(static_cast<double>(x.size(0))));
  double h = (options.step > 0 ? options.step : quarter) * spread;
  std::optional<SpotCheck::Slope> best;
  for (int64_t i = 0; i < options.tries; ++i) {
    Measured now = measure(x, d, h, functions);
    if (!now.reached) {
      h /= 8;  // a solve beside x may fail because it is too far
      continue;
    }
    // What another h says is a second opinion, also on how certain this one is.
    if (best) now.slope.uncertainty = std::max(now.slope.uncertainty, std::abs(now.slope.measured - best->measured) / 2);
    if (!best || now.slope.uncertainty < best->uncertainty) best = now.slope;
    const double scale = std::max(size, weight * std::abs(best->measured));
    if (weight * best->uncertainty <= 0.1 * options.off_by_part * scale) break;
    const double bend = std::abs(now.slope.fine - now.slope.coarse);
    h *= now.slope.uncertainty > bend ? 8.0 : 0.25;
  }
  return best;
}

/// A known bias is no fault, as long as the value points downhill.
bool judged_along_itself(const Hypergradient& h) { return !h.certificate.bias.empty() && norm_of(h.value) > 0; }

std::string of_the_bias(const Hypergradient& h, double ratio) {
  return ratio < 0 ? fmt::format(": it points uphill. A bias is known: {}", h.certificate.bias)
                   : fmt::format(", {:.3g} times as much. A bias is known: {}", 1 / ratio, h.certificate.bias);
}

/// A corrected solve at a minimum has come to the same value. With slopes that agree too, this outweighs a rule of thumb on
/// residuals.
bool vouched_for(const Hypergradient& h) {
  const Certificate& certificate = h.certificate;
  return certificate.curvature && certificate.distance_to_F && *certificate.distance_to_F <= 0.1 * norm_of(h.value);
}

}  // namespace

std::vector<std::string> SpotCheckOptions::violations() const {
  std::vector<std::string> found;
  if (!(target > 0 && target < 1)) found.push_back(fmt::format("target = {} must be between 0 and 1", target));
  if (!(step >= 0)) found.push_back(fmt::format("step = {} must be at least 0", step));
  if (tries < 1) found.push_back(fmt::format("tries = {} must be at least 1", tries));
  return found;
}

std::unique_ptr<NamedFunction> NamedFunction::of(const EstimatorInput& in, const std::string& name,
                                                 const SpotCheckOptions& options, std::string& why) {
  const at::NoGradGuard no_grad;
  const auto* rule = dynamic_cast<const RuleSolver*>(&in.solver);
  if (!std::isfinite(in.solution.y.abs().sum().item<double>())) {
    why = "the inner solution is not finite.";
  } else if (name == "F" || name.starts_with("F,")) {
    if (!in.solver.stops_at_stationarity()) {
      why = "the inner solver does not stop where the gradient is zero.";
    } else {
      return std::make_unique<AtTheOptimum>(in, options);
    }
  } else if (name.starts_with("F_T, last step as plain")) {
    return std::make_unique<AfterOnePlainStep>(in);
  } else if (name.starts_with("F_T")) {
    if (rule == nullptr || !in.start.y.defined()) {
      why = "the inner solve cannot be repeated step by step.";
    } else {
      const int64_t last = name == "F_T" ? in.solution.steps : steps_named(name);
      auto steps = std::make_unique<AfterSteps>(in, *rule, last == 0 ? in.solution.steps : last);
      if (steps->repeats()) return steps;
      why = "the inner solve did not repeat itself.";
    }
  } else {
    why = fmt::format("there is no way to evaluate \"{}\" anew.", name);
  }
  return nullptr;
}

SpotCheck spot_check(const Hypergradient& estimate, const at::Tensor& x,
                     const std::vector<std::unique_ptr<NamedFunction>>& functions, Draw draw, const SpotCheckOptions& options) {
  const auto violations = options.violations();
  require(violations.empty(), fmt::format("spot_check: {}.", fmt::join(violations, "; ")));
  const at::NoGradGuard no_grad;
  SpotCheck check;
  const at::Tensor& value = estimate.value;
  const double size = norm_of(value), standard_error = estimate.certificate.standard_error.value_or(0.0);
  if (!std::isfinite(size)) {
    check.message = "The hypergradient is not finite, so there is nothing to check.";
    return check;
  }
  const auto dx = static_cast<double>(x.size(0));
  const at::Tensor z = draw.normal({x.size(0)}).to(x.options());
  std::vector<std::pair<std::string, at::Tensor>> directions;
  if (size > 0) directions.emplace_back("gradient", value.detach() / size);
  directions.emplace_back("random", z / z.norm());

  bool reached = true;
  double worst = -1;
  std::string worst_direction;
  for (const auto& [name, d] : directions) {
    // How much error one unit of a slope's disagreement stands for.
    const double weight = name == "random" ? std::sqrt(dx) : 1.0;
    std::optional<SpotCheck::Slope> slope = slope_along(d, x, functions, size, weight, options);
    reached = reached && slope;
    if (!slope) continue;
    slope->direction = name;
    slope->predicted = (d.to(at::kDouble) * value.to(at::kDouble)).sum().item<double>();
    const double off = weight * std::abs(slope->predicted - slope->measured);
    const double allowed = 3 * weight * slope->uncertainty + 3 * standard_error;
    const double scale = std::max(size, weight * std::abs(slope->measured));
    // A slope that is known to no better than what it should show says nothing, unless it contradicts in spite of that.
    const bool says = weight * slope->uncertainty <= options.off_by_part * scale;
    const double excess = scale > 0 ? std::max(0.0, off - allowed) / scale : 0.0;
    check.disagreement = std::max(check.disagreement, scale > 0 ? off / scale : 0.0);
    if (says && name == directions.front().first) check.conclusive = true;
    if (excess > worst && (name == "gradient" || !judged_along_itself(estimate))) worst = excess, worst_direction = name;
    check.slopes.push_back(std::move(*slope));
  }

  const std::string how = functions.empty() ? "" : functions.front()->description();
  if (worst > options.off_by_part) {
    const auto slope = std::find_if(check.slopes.begin(), check.slopes.end(),
                                    [&](const SpotCheck::Slope& one) { return one.direction == worst_direction; });
    const bool uphill = slope->measured + 3 * (slope->uncertainty + standard_error) < 0;
    check.grade = (judged_along_itself(estimate) ? uphill : worst > options.off_by_all) ? Grade::kBad : Grade::kWarn;
    check.conclusive = true;
    check.message = fmt::format("The slope along the {} direction is {:.3e} ± {:.1e} ({}), and the hypergradient says {:.3e}{}.",
                                worst_direction, slope->measured, slope->uncertainty, how, slope->predicted,
                                judged_along_itself(estimate) ? of_the_bias(estimate, slope->measured / size) : "");
  } else if (!reached) {
    check.grade = Grade::kWarn;
    check.conclusive = false;
    check.message = fmt::format("The hypergradient cannot be certified by slopes: {} does not converge beside x.", how);
  } else if (!check.conclusive) {
    check.message = "The hypergradient cannot be certified by slopes: they are too uncertain at the steps that were tried.";
  } else if (judged_along_itself(estimate)) {
    check.message = fmt::format("The slope along the hypergradient is what it says to {:.1e} of its size ({}); {}.",
                                std::max(worst, 0.0), how, estimate.certificate.bias);
  } else {
    check.message = fmt::format("Slopes agree with the hypergradient to {:.1e} of its size ({}).", check.disagreement, how);
  }
  return check;
}

void take(Hypergradient& h, SpotCheck check) {
  if (check.grade != Grade::kOk) {
    demote(h, check.grade, check.message);
  } else if (check.conclusive && h.grade == Grade::kWarn && vouched_for(h)) {
    h.grade = Grade::kOk;
    h.message = fmt::format("{} (Before: {})", check.message, h.message);
  } else if (!check.conclusive && h.grade == Grade::kOk) {
    const double size = norm_of(h.value);
    if (!h.certificate.error_bound || !(*h.certificate.error_bound <= 0.1 * size)) {
      demote(h, Grade::kWarn, fmt::format("{} Nor does an error bound vouch for it.", check.message));
    }
  }
  h.certificate.spot_check = std::move(check);
}

}  // namespace bilevel
