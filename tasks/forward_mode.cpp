// d f(x, y_T(x)) along u, carrying (dy, ds) along with (y, s):
//   (y', s') = Φ(y, s, ∂y g, h),  d∂y g = H dy + ∂x∂y g u,  dh = ∂h/∂x u,  dF_T = ⟨∂x f, u⟩ + ⟨∂y f, dy_T⟩
#include "tasks/forward_mode.h"

#include <ATen/ATen.h>

#include <vector>

#include "bilevel/oracle/autodiff.h"

namespace bilevel {
namespace {

double along(const Oracle& oracle, const RuleSolver& solver, const at::Tensor& x, const at::Tensor& u, int64_t slice) {
  const Problem& problem = oracle.problem();
  const UpdateRule& rule = solver.rule();
  at::Tensor y = problem.initial_inner(x, slice).detach();
  at::Tensor dy = problem.initial_inner_depends_on_outer() ? u.clone() : at::zeros_like(y);  // y₀ = x, where it depends on x
  Tensors h = rule.default_h(y);
  const auto names = rule.hyperparameters();
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i] == "lr" && solver.options().lr) h[i] = at::scalar_tensor(*solver.options().lr, y.options());
  }
  const SolveContext context{oracle, x, slice, 0, h};
  Tensors s = rule.fresh_state(y), ds = rule.fresh_state(y);
  for (int64_t t = 0; t < solver.options().steps; ++t) {
    const auto linearization = oracle.linearize_inner(x, y, solver.batch(t, slice));
    const at::Tensor dg = linearization->jvp_y(dy) + linearization->jvp_x(u);
    const RuleInput input = solver.input(context, {y, s, t}, t, linearization->residual());
    RuleOutput tangent = rule.jvp(input, {dy, ds, dg, solver.hyperparameters_jvp(context, t, u)});
    RuleOutput next = rule.step(input);
    y = next.y, s = next.state, dy = tangent.y, ds = tangent.state;
  }
  Batch batch;
  batch.slice = slice;
  const Gradients f = oracle.outer(x, y, batch);
  return (f.x.dot(u) + f.y.dot(dy)).item<double>();
}

}  // namespace

at::Tensor forward_mode(const Problem& problem, const RuleSolver& solver, const at::Tensor& x, int64_t slice) {
  const AutodiffOracle oracle(problem);
  const at::Tensor basis = at::eye(x.size(0), x.options());
  std::vector<double> values;
  for (int64_t i = 0; i < x.size(0); ++i) values.push_back(along(oracle, solver, x, basis[i], slice));
  return at::tensor(values, x.options());
}

}  // namespace bilevel
