// Implicit hypergradients where y is constrained. Problems are small, so that the reference can try every active set.
#include <ATen/ATen.h>

#include <algorithm>
#include <functional>

#include "bench/study_problems.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/inner/proximal_gradient.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/dense.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/autograd.h"
#include "bilevel/problem/inner_constraints.h"

namespace bilevel::study {
namespace {

constexpr const char* kConstrainedDamages[] = {"wrong sign", "wrong sign in the products", "stale batch", "early stop", "NaN",
                                               "wrong set"};
constexpr const char* kConstrainedProblems[] = {"box", "lasso", "simplex", "non-negative"};

/// g = mean ℓ(X y, t) + ½ μ‖y‖² − yᵀB x with the squared or (non-negative) the logistic loss, f = mean ℓ(V y, s) + ½ 1e-3 ‖x‖²,
/// and
///   box:           −b ≤ y ≤ b (1 + tanh(x₀)/4), b half of the largest |y| without
///   lasso:         l1 = w exp(x ⊙ ½), w a fifth of the least penalty that makes y zero
///   simplex:       y ≥ 0, Σ y = 1 + tanh(x₀)/4
///   non-negative:  y ≥ 0
class Constrained final : public WithData<Constrained> {
 public:
  Constrained(Draw& draw, int64_t kind, double condition, at::ScalarType dtype) : kind_(kind) {
    const int64_t p = 3 + draw.integers(3, {1}).item<int64_t>(), n = 8 * p;
    X = design(draw, n, p, condition);
    V = design(draw, n, p, std::sqrt(condition));
    const at::Tensor truth = draw.normal({p});
    t = X.mv(truth) + 0.3 * draw.normal({n});
    s = V.mv(truth) + 0.3 * draw.normal({n});
    if (kind == 3) t = (t > 0).to(at::kDouble), s = (s > 0).to(at::kDouble);
    mu_ = 0.1 / condition;
    B = X.t().mm(draw.normal({n, p})) / static_cast<double>(n);
    x0 = 0.5 * draw.normal({p});
    y0 = at::zeros({p}, at::kDouble);
    const at::Tensor H = X.t().mm(X) / static_cast<double>(n) + mu_ * at::eye(p, at::kDouble);
    const at::Tensor pull = X.t().mv(t) / static_cast<double>(n) + B.mv(x0);
    size_ = kind == 0 ? 0.5 * at::linalg_solve(H, pull).abs().max().item<double>() : 0.2 * pull.abs().max().item<double>();
    finish(dtype);
  }
  std::vector<at::Tensor*> data() { return {&X, &V, &t, &s, &B, &x0, &y0}; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return loss(rows(X, batch).mv(y), rows(t, batch)) + 0.5 * mu_ * y.square().sum() - y.dot(B.mv(x));
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return loss(V.mv(y), s) + 0.5e-3 * x.square().sum();
  }
  bool has_inner_constraints() const override { return true; }
  InnerConstraints inner_constraints(const at::Tensor& x) const override {
    const at::Tensor zero = at::zeros({}, x.options());
    switch (kind_) {
      case 0: return {.lower = zero - size_, .upper = size_ * (1 + x[0].tanh() / 4)};
      case 1: return {.l1 = size_ * (0.5 * x).exp()};
      case 2:
        return {
            .lower = zero, .equality = at::ones({1, x.size(0)}, x.options()), .equality_rhs = (1 + x[0].tanh() / 4).reshape({1})};
      default: return {.lower = zero};
    }
  }
  int64_t inner_samples() const override { return X.size(0); }
  double inner_strong_convexity(const at::Tensor&) const override { return mu_; }

 private:
  at::Tensor loss(const at::Tensor& z, const at::Tensor& target) const {
    return kind_ == 3 ? (at::softplus(z) - target * z).mean() : 0.5 * (z - target).square().mean();
  }
  int64_t kind_;
  at::Tensor X, V, t, s, B;
  double mu_ = 0, size_ = 0;
};

/// A point that satisfies the conditions of a minimum, and ∇F there.
struct Solved {
  at::Tensor y, gradient;
  int64_t free = 0;  // coordinates, less equalities
  bool known = false;
};

/// One active set: a coordinate is free with the sign + or −, at zero by the penalty, at its lower or at its upper bound.
enum Place { kPlus, kMinus, kZero, kLower, kUpper };

/// The conditions of a minimum on one active set, by Newton's method on (y_F, ν) with the whole KKT matrix, and ∇F by one more
/// step of it as a function of x.
class OneSet {
 public:
  OneSet(const Constrained& problem, std::vector<Place> places)
      : problem_(problem), places_(std::move(places)), d_(problem.y0.size(0)) {
    for (int64_t i = 0; i < d_; ++i) {
      if (places_[static_cast<size_t>(i)] <= kMinus) free_.push_back(i);
    }
    const at::AutoGradMode grad_mode(true);
    x_ = leaf(problem.x0);
    c_ = problem.inner_constraints(x_);
  }
  Solved solve() const {
    const at::AutoGradMode grad_mode(true);
    const int64_t m = c_.equality.defined() ? c_.equality.size(0) : 0, k = static_cast<int64_t>(free_.size());
    at::Tensor u = at::zeros({k + m}, at::kDouble), J;
    Solved out;
    if (k < m) return out;
    double start = 0, left = 0;
    for (int i = 0; i < 100 && k > 0; ++i) {
      const at::Tensor at_u = leaf(u), psi = conditions(at_u);
      left = length(psi.detach());
      if (i == 0) start = left;
      J = at::zeros({k + m, k + m}, at::kDouble);
      for (int64_t j = 0; j < k + m; ++j) J[j].copy_(gradients(psi[j], {at_u}, {}, /*retain_graph=*/true)[0]);
      const auto [step, info] = at::linalg_solve_ex(J, psi.detach());
      if (info.item<int>() != 0 || !std::isfinite(length(step))) return out;
      double t = 1.0;
      while (t > 1e-3 && !(length(conditions(u - t * step).detach()) < (1 - 0.3 * t) * left)) t /= 2;
      if (t <= 1e-3) break;  // rounding is left
      u = u - t * step;
    }
    if (!(left <= 1e-11 * (start + length(u)))) return out;
    if (!is_minimum(u)) return out;
    out.known = true;
    out.free = k - m;
    out.y = y_of(u, x_).detach();
    const at::Tensor moving = k > 0 ? u - at::linalg_solve(J, conditions(u)) : u;  // as a function of x
    out.gradient = gradients(problem_.outer_loss(x_, y_of(moving, x_), {}), {x_})[0];
    return out;
  }

 private:
  at::Tensor value(const at::Tensor& v, int64_t i) const { return v.dim() == 0 ? v : v[i]; }
  at::Tensor y_of(const at::Tensor& u, const at::Tensor&) const {
    std::vector<at::Tensor> y;
    int64_t next = 0;
    for (int64_t i = 0; i < d_; ++i) {
      const Place place = places_[static_cast<size_t>(i)];
      y.push_back(place <= kMinus  ? u[next++]
                  : place == kZero ? at::zeros({}, at::kDouble)
                                   : value(place == kLower ? c_.lower : c_.upper, i));
    }
    return at::stack(y);
  }
  // ∂y of g + l1 + νᵀ(E y − e), all coordinates.
  at::Tensor slopes(const at::Tensor& u) const {
    at::Tensor y = y_of(u, x_);
    if (!y.requires_grad()) y.requires_grad_(true);
    at::Tensor slope = gradients(problem_.inner_loss(x_, y, {}), {y}, {}, true, true)[0];
    if (c_.equality.defined())
      slope = slope + c_.equality.t().mv(u.narrow(0, static_cast<int64_t>(free_.size()), c_.equality.size(0)));
    return slope;
  }
  at::Tensor conditions(const at::Tensor& u) const {
    const at::Tensor slope = slopes(u);
    std::vector<at::Tensor> psi;
    for (const int64_t i : free_) {
      const double sign = places_[static_cast<size_t>(i)] == kPlus ? 1.0 : -1.0;
      psi.push_back(c_.l1.defined() ? slope[i] + sign * value(c_.l1, i) : slope[i]);
    }
    if (c_.equality.defined()) psi.push_back((c_.equality.mv(y_of(u, x_)) - c_.equality_rhs)[0]);
    return at::stack(psi);
  }
  bool is_minimum(const at::Tensor& u) const {
    const at::Tensor y = y_of(u, x_).detach(), slope = slopes(u.detach()).detach();
    for (int64_t i = 0; i < d_; ++i) {
      const double at_i = y[i].item<double>(), pull = slope[i].item<double>();
      const auto of = [&](const at::Tensor& v) { return value(v, i).item<double>(); };
      switch (places_[static_cast<size_t>(i)]) {
        case kPlus:
        case kMinus:
          if (c_.lower.defined() && at_i < of(c_.lower)) return false;
          if (c_.upper.defined() && at_i > of(c_.upper)) return false;
          if (c_.l1.defined() && (at_i > 0) != (places_[static_cast<size_t>(i)] == kPlus)) return false;
          break;
        case kZero:
          if (std::abs(pull) > of(c_.l1)) return false;
          break;
        case kLower:
          if (pull < 0) return false;
          break;
        case kUpper:
          if (pull > 0) return false;
      }
    }
    return true;
  }
  const Constrained& problem_;
  std::vector<Place> places_;
  std::vector<int64_t> free_;
  int64_t d_;
  at::Tensor x_;
  InnerConstraints c_;
};

/// The active set that a descent is on after a while: the first to be tried.
std::vector<Place> guess(const Constrained& problem, const InnerConstraints& c) {
  const at::Tensor y = ProximalGradient({.max_iterations = 200, .tolerance = 1e-12})
                           .solve(AutodiffOracle(problem), problem.x0, 0, {problem.y0}, {})
                           .y;
  std::vector<Place> places;
  for (int64_t i = 0; i < y.size(0); ++i) {
    const auto meets = [&](const at::Tensor& bound) {
      return bound.defined() && (bound.dim() == 0 ? bound : bound[i]).equal(y[i]);
    };
    const double at_i = y[i].item<double>();
    places.push_back(meets(c.lower)                ? kLower
                     : meets(c.upper)              ? kUpper
                     : c.l1.defined() && at_i == 0 ? kZero
                     : c.l1.defined() && at_i < 0  ? kMinus
                                                   : kPlus);
  }
  return places;
}

/// By trying every active set.
Solved reference(const Constrained& problem) {
  const InnerConstraints c = problem.inner_constraints(problem.x0);
  if (const Solved likely = OneSet(problem, guess(problem, c)).solve(); likely.known) return likely;
  std::vector<Place> kinds{kPlus};
  if (c.l1.defined()) kinds.insert(kinds.end(), {kMinus, kZero});
  if (c.lower.defined()) kinds.push_back(kLower);
  if (c.upper.defined()) kinds.push_back(kUpper);
  std::vector<size_t> pattern(static_cast<size_t>(problem.y0.size(0)), 0);
  while (true) {
    std::vector<Place> places;
    for (const size_t i : pattern) places.push_back(kinds[i]);
    const Solved found = OneSet(problem, places).solve();
    if (found.known) return found;
    size_t i = 0;
    while (i < pattern.size() && ++pattern[i] == kinds.size()) pattern[i++] = 0;
    if (i == pattern.size()) return {};
  }
}

/// As a proximal solver ends: one of its steps from a share τ of the way, τ from 1e-4 to 1e-9. Early: five steps from the start.
/// Wrong set: what is held has left its bound by a tenth of the size of y.
InnerSolution solve(const Oracle& oracle, const Constrained& problem, const at::Tensor& optimum, Draw& draw,
                    const std::string& damage) {
  const at::Tensor H = matrix(*AutodiffOracle(*problem.twin()).linearize_inner(problem.twin()->x0, optimum, {}), optimum.size(0));
  const double lr = 1 / at::linalg_eigvalsh(H).abs().max().item<double>();
  const double left = std::pow(10.0, -4.0 - 5.0 * draw.uniform({1}).item<double>());
  const at::Tensor from =
      damage == "early stop" ? problem.y0 : (optimum + left * (problem.twin()->y0 - optimum)).to(problem.y0.scalar_type());
  const ProximalGradient solver({.lr = lr, .max_iterations = damage == "early stop" ? 5 : 1, .tolerance = 1e-300});
  InnerSolution solution = solver.solve(oracle, problem.x0, 0, {from}, {});
  if (damage == "wrong set") {
    const double inside = 0.1 * solution.y.abs().max().item<double>();
    const InnerConstraints c = problem.inner_constraints(problem.x0);
    const at::Tensor y = solution.y;
    at::Tensor moved = y;
    if (c.l1.defined()) moved = at::where(y == 0, at::full_like(y, inside), moved);
    if (c.lower.defined()) moved = at::where(y == c.lower, y + inside, moved);
    if (c.upper.defined()) moved = at::where(y == c.upper, y - inside, moved);
    solution.y = moved;
  }
  if (damage != "early stop") solution.status = Status::kConverged;
  return solution;
}

}  // namespace

CertificateCase constrained_case(int64_t seed) {
  const at::NoGradGuard no_grad;
  Draw draw = Stream(static_cast<uint64_t>(seed), "constrained certificate study").at(0);
  CertificateCase found;
  found.seed = seed;
  const Drawn drawn = draw_case(draw, found);
  found.problem = kConstrainedProblems[drawn.kind];
  found.damage = seed % 3 == 0 ? kConstrainedDamages[drawn.damage] : "";
  found.estimator = drawn.which == 1 ? "implicit dense" : "implicit cg";

  // With nothing free no product counts, and damage to it is none.
  std::unique_ptr<Constrained> drawn_problem;
  std::unique_ptr<StudyProblem> twin;
  Solved exact;
  for (int i = 0; i < 50 && exact.free < 2; ++i) {
    drawn_problem = std::make_unique<Constrained>(draw, drawn.kind, found.condition, drawn.dtype);
    twin = drawn_problem->twin();
    exact = reference(static_cast<const Constrained&>(*twin));
  }
  const Constrained& problem = *drawn_problem;
  const AutodiffOracle honest(problem);
  const at::Tensor optimum = exact.known ? exact.y : twin->y0;
  InnerSolution solution = solve(honest, problem, optimum, draw, found.damage);
  if (found.damage == "wrong set" && !(length(solution.y.to(at::kDouble) - optimum) > 1e-2 * length(optimum)))
    found.damage = "wrong sign";

  const DamagedOracle damaged(honest, problem, found.damage, draw);
  const Oracle& oracle = found.damage.empty() ? static_cast<const Oracle&>(honest) : damaged;
  const ProximalGradient solver(ProximalGradientOptions{});
  std::unique_ptr<LinearSolver> linear;
  if (drawn.which == 1) linear = std::make_unique<Dense>(DenseOptions{});
  if (drawn.which == 0) linear = std::make_unique<Cg>(CgOptions{.iterations = 3 * problem.y0.size(0)});
  const EstimatorInput in{oracle, solver, problem.x0, solution, {}, {}, {}};
  Hypergradient h = Implicit(std::move(linear)).estimate(in);
  if (found.damage == "wrong sign") h.value = 2 * h.direct - h.value;
  examine(found, h, in, drawn.products);
  found.error = exact.known ? length(h.value.to(at::kDouble) - exact.gradient) : std::numeric_limits<double>::quiet_NaN();
  found.named_error = found.error;
  return found;
}

}  // namespace bilevel::study
