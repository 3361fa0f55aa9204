#include "bench/certificate_study.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "bench/study_problems.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/dense.h"
#include "bilevel/oracle/autodiff.h"

namespace bilevel {
namespace study {
namespace {

std::unique_ptr<Estimator> make_estimator(int64_t which, int64_t dy) {
  if (which == 1) return std::make_unique<Implicit>(std::make_unique<Dense>(DenseOptions{}));
  return std::make_unique<Implicit>(std::make_unique<Cg>(CgOptions{.iterations = 3 * dy}));
}

/// A root of r in double, by Newton's method from y; it need not be a minimum.
at::Tensor root(const Oracle& exact, const at::Tensor& x, at::Tensor y) {
  for (int i = 0; i < 60; ++i) {
    auto there = exact.linearize_inner(x, y, {});
    const at::Tensor r = there->residual();
    const at::Tensor step = at::linalg_solve(matrix(*there, y.size(0)), r);
    double t = 1.0;
    while (t > 1e-3 && !(length(exact.inner(x, y - t * step, {}).y) < (1 - 0.3 * t) * length(r))) t /= 2;
    if (t <= 1e-3) break;
    y = y - t * step;
  }
  return y;
}

/// Where an inner solve may end: at a root of r but for a share τ of the way there from y₀, τ from 1e-4 to 1e-9. A network comes
/// from a descent, so that the root is a minimum. Damaged: five steps of gradient descent. Indefinite: whatever root is there.
InnerSolution solve(const Oracle& oracle, const StudyProblem& problem, Draw& draw, const std::string& damage) {
  const auto twin = problem.twin();
  const AutodiffOracle exact(*twin);
  at::Tensor y = twin->y0;
  if (damage == "early stop") {
    const double L = at::linalg_eigvalsh(matrix(*exact.linearize_inner(twin->x0, y, {}), y.size(0))).abs().max().item<double>();
    for (int i = 0; i < 5; ++i) y = y - exact.inner(twin->x0, y, {}).y / L;
  } else {
    if (dynamic_cast<const Mlp*>(&problem) != nullptr && damage != "indefinite") {
      y = Lbfgs(LbfgsOptions{.max_iterations = 300, .tolerance = 1e-8}).solve(exact, twin->x0, 0, {y}, {}).y;
    }
    // Near zero weights a network is at a saddle.
    if (dynamic_cast<const Mlp*>(&problem) != nullptr && damage == "indefinite") y = 0.05 * y;
    const double left = std::pow(10.0, -4.0 - 5.0 * draw.uniform({1}).item<double>());
    y = root(exact, twin->x0, y);
    y = y + left * (twin->y0 - y);
  }
  InnerSolution solution;
  solution.y = y.to(problem.y0.scalar_type());
  const Gradients inner = oracle.inner(problem.x0, solution.y, {});
  solution.loss = inner.value.item<double>();
  solution.stationarity = length(inner.y);
  solution.initial_stationarity = length(oracle.inner(problem.x0, problem.y0, {}).y);
  solution.status = damage == "early stop" ? Status::kIterationLimit : Status::kConverged;
  solution.previous = solution.y;
  return solution;
}

/// ∇F of the twin in double, at the root of r that Newton's method finds from y. Undefined: it finds none.
at::Tensor reference(const StudyProblem& problem, const at::Tensor& x, at::Tensor y) {
  const AutodiffOracle oracle(problem);
  const double start = length(oracle.inner(x, y, {}).y);
  y = root(oracle, x, y);
  auto there = oracle.linearize_inner(x, y, {});
  if (!(length(there->residual()) <= 1e-6 * start + 1e-10)) return {};
  const at::Tensor H = matrix(*there, y.size(0));
  const Gradients outer = oracle.outer(x, y, {});
  at::Tensor q = at::linalg_solve(H, outer.y);
  q = q + at::linalg_solve(H, outer.y - there->jvp_y(q));
  return outer.x - there->vjp(q).x;
}

std::string describe(const std::optional<SpotCheck>& check) {
  if (!check) return "none";
  if (check->grade == Grade::kOk) return check->conclusive ? "agrees" : "inconclusive";
  return check->conclusive ? "disagrees" : "failed";
}

}  // namespace

Drawn draw_case(Draw& draw, CertificateCase& found) {
  Drawn drawn;
  drawn.kind = draw.integers(4, {1}).item<int64_t>();
  drawn.condition = found.condition = std::pow(10.0, 1.0 + 7.0 * draw.uniform({1}).item<double>());
  drawn.dtype = draw.uniform({1}).item<double>() < 0.5 ? at::kFloat : at::kDouble;
  drawn.products = draw.uniform({1}).item<double>() < 0.3;
  drawn.which = draw.integers(2, {1}).item<int64_t>();
  drawn.damage = draw.integers(6, {1}).item<int64_t>();
  found.dtype = drawn.dtype == at::kFloat ? "float32" : "float64";
  found.route = drawn.products ? "products" : "dense";
  return drawn;
}

void examine(CertificateCase& found, Hypergradient& h, const EstimatorInput& in, bool products) {
  BoundOptions bound;
  SpotCheckOptions check;
  if (products) bound.dense_dim = check.dense_dim = 0;
  certify(h, in, bound);
  found.bound_grade = h.grade;
  std::string why;
  std::vector<std::unique_ptr<NamedFunction>> functions;
  functions.push_back(NamedFunction::of(in, h.certificate.differentiates, check, why));
  if (functions.front() != nullptr)
    take(h, spot_check(h, in.x, functions, Stream(static_cast<uint64_t>(found.seed), "spot check").at(0), check));

  found.grade = h.grade;
  found.bound = h.certificate.error_bound;
  found.check = describe(h.certificate.spot_check);
  found.says_off = h.message.find("off from what a corrected solve gives") != std::string::npos;
  found.message = h.message + " | " + h.certificate.bound_reason +
                  (h.certificate.spot_check ? " | " + h.certificate.spot_check->message : why);
  found.norm = length(h.value);
}

CertificateCase implicit_case(int64_t seed) {
  constexpr const char* kDamages[] = {"wrong sign", "wrong sign in the products", "stale batch", "early stop", "NaN",
                                      "indefinite"};
  constexpr const char* kProblems[] = {"quadratic", "ridge", "logistic", "mlp"};
  const at::NoGradGuard no_grad;
  Draw draw = Stream(static_cast<uint64_t>(seed), "certificate study").at(0);
  CertificateCase found;
  found.seed = seed;
  const Drawn drawn = draw_case(draw, found);
  found.problem = kProblems[drawn.kind];
  found.damage = seed % 3 == 0 ? kDamages[drawn.damage] : "";
  found.estimator = drawn.which == 1 ? "implicit dense" : "implicit cg";

  const auto problem = make_problem(drawn.kind, draw, found.condition, found.damage == "indefinite", drawn.dtype);
  const AutodiffOracle honest(*problem);
  const at::Tensor x = problem->x0;
  InnerSolution solution = solve(honest, *problem, draw, found.damage);

  const DamagedOracle damaged(honest, *problem, found.damage, draw);
  const Oracle& oracle = found.damage.empty() ? static_cast<const Oracle&>(honest) : damaged;
  const Lbfgs solver(LbfgsOptions{});
  const auto estimator = make_estimator(drawn.which, problem->y0.size(0));
  const EstimatorInput in{oracle, solver, x, solution, {}, {}, {}};
  Hypergradient h = estimator->estimate(in);
  if (found.damage == "wrong sign") h.value = 2 * h.direct - h.value;
  examine(found, h, in, drawn.products);

  const auto twin = problem->twin();
  const at::Tensor truth = reference(*twin, x.to(at::kDouble), solution.y.to(at::kDouble));
  found.error = truth.defined() ? length(h.value.to(at::kDouble) - truth) : std::numeric_limits<double>::quiet_NaN();
  found.named_error = found.error;
  return found;
}

}  // namespace study

CertificateCase certificate_case(int64_t seed, const std::string& family) {
  CertificateCase found = family == "unrolled"      ? study::unrolled_case(seed)
                          : family == "constrained" ? study::constrained_case(seed)
                                                    : study::implicit_case(seed);
  found.family = family;
  return found;
}

CertificateSummary summarise(const std::vector<CertificateCase>& cases) {
  CertificateSummary sum;
  std::vector<double> tightness;
  for (const CertificateCase& one : cases) {
    ++sum.cases;
    const bool alarm = one.grade != Grade::kOk && !one.uncertain();
    const bool wrong = !(one.named_error <= 0.1 * one.norm);
    if (!one.damage.empty()) {
      ++sum.damaged;
      sum.caught += alarm;
      sum.damaged_uncertain += one.uncertain();
      sum.damaged_right += one.grade == Grade::kOk && !wrong;
      continue;
    }
    ++sum.undamaged;
    sum.alarms += alarm;
    sum.false_alarms += alarm && !wrong;
    sum.undamaged_uncertain += one.uncertain();
    sum.missed_errors += wrong && one.grade == Grade::kOk;
    if (one.bound && std::isfinite(one.error)) {
      ++sum.bounds;
      sum.bounds_held += one.error <= *one.bound;
    }
    if (!one.convex()) continue;
    ++sum.convex;
    sum.no_bound += !one.bound;
    if (one.bound && one.error > 0) tightness.push_back(*one.bound / one.error);
  }
  if (!tightness.empty()) {
    std::nth_element(tightness.begin(), tightness.begin() + static_cast<std::ptrdiff_t>(tightness.size() / 2), tightness.end());
    sum.median_tightness = tightness[tightness.size() / 2];
    const auto tight = std::count_if(tightness.begin(), tightness.end(), [](double ratio) { return ratio <= 10; });
    sum.share_within_ten = static_cast<double>(tight) / static_cast<double>(tightness.size());
  }
  return sum;
}

}  // namespace bilevel
