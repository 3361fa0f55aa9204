// Unrolled hypergradients, whole and truncated, of plain gradient descent.
#include <ATen/ATen.h>

#include <algorithm>

#include "bench/study_problems.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/oracle/autodiff.h"

namespace bilevel::study {
namespace {

constexpr const char* kUnrolledDamages[] = {"wrong sign", "wrong sign in the products", "stale batch", "lost steps", "NaN"};
constexpr const char* kUnrolledProblems[] = {"quadratic", "ridge", "logistic", "mlp"};

/// dF_T/dx in double, by carrying J = ∂y_t/∂x along: J ← (I − ηH) J − η ∂x∂y g, from J = 0 at t = `held`.
at::Tensor reference(const StudyProblem& problem, double lr, int64_t steps, int64_t held) {
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.x0, unit = at::eye(x.size(0), x.options());
  at::Tensor y = problem.y0, J = at::zeros({x.size(0), y.size(0)}, x.options());  // row i by x_i
  for (int64_t t = 0; t < steps; ++t) {
    auto there = oracle.linearize_inner(x, y, {});
    if (t >= held) J = J - lr * (there->jvp_y(J) + there->jvp_x(unit));
    y = y - lr * there->residual();
  }
  const Gradients outer = oracle.outer(x, y, {});
  return outer.x + J.mv(outer.y);
}

/// About the largest step size that is safe, as the dtype has it.
double step_size(const StudyProblem& twin, at::ScalarType dtype) {
  const AutodiffOracle oracle(twin);
  const at::Tensor H = matrix(*oracle.linearize_inner(twin.x0, twin.y0, {}), twin.y0.size(0));
  const double L = at::linalg_eigvalsh(H).abs().max().item<double>();
  return at::scalar_tensor((dynamic_cast<const Mlp*>(&twin) != nullptr ? 0.3 : 1.0) / L, dtype).item<double>();
}

}  // namespace

CertificateCase unrolled_case(int64_t seed) {
  const at::NoGradGuard no_grad;
  Draw draw = Stream(static_cast<uint64_t>(seed), "unrolled certificate study").at(0);
  CertificateCase found;
  found.seed = seed;
  const Drawn drawn = draw_case(draw, found);
  const int64_t steps = 10 + draw.integers(50, {1}).item<int64_t>();
  const int64_t last =
      drawn.which == 1 ? std::max<int64_t>(1, steps / 8 + draw.integers(7 * steps / 8, {1}).item<int64_t>()) : steps;
  found.problem = kUnrolledProblems[drawn.kind];
  found.damage = seed % 3 == 0 ? kUnrolledDamages[drawn.damage % 5] : "";
  found.estimator = drawn.which == 1 ? "truncated" : "unrolled";

  const auto problem = make_problem(drawn.kind, draw, found.condition, false, drawn.dtype);
  const auto twin = problem->twin();
  const AutodiffOracle honest(*problem);
  const DamagedOracle damaged(honest, *problem, found.damage, draw);
  const Oracle& oracle = found.damage.empty() ? static_cast<const Oracle&>(honest) : damaged;
  const double lr = step_size(*twin, drawn.dtype);
  RuleSolverOptions options;
  options.steps = steps;
  options.lr = lr;
  const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{}), options);
  // Products are then asked for on the way back, and the solve itself is honest.
  UnrolledOptions unrolled{.steps = last == steps ? 0 : last, .memory = Memory::kStates};
  if (found.damage == "lost steps") unrolled.steps = 1;
  const Unrolled estimator(unrolled);
  InnerSolution solution = solver.solve(oracle, problem->x0, 0, {problem->y0}, estimator.trajectory());
  EstimatorInput in{oracle, solver, problem->x0, solution, {}, {}, {}};
  in.bound = true;
  in.start.y = problem->y0;
  Hypergradient h = estimator.estimate(in);
  if (found.damage == "wrong sign") h.value = 2 * h.direct - h.value;
  if (found.damage == "lost steps") h.certificate.differentiates = "F_T";
  examine(found, h, in, drawn.products);

  const at::Tensor value = h.value.to(at::kDouble);
  found.error = length(value - reference(*twin, lr, steps, 0));
  found.named_error = last == steps ? found.error : length(value - reference(*twin, lr, steps, steps - last));
  return found;
}

}  // namespace bilevel::study
