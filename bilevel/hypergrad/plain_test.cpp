#include "bilevel/hypergrad/plain_test.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "bilevel/hypergrad/registry.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::testing {
namespace {

using torch::autograd::grad;

at::Tensor variable(const at::Tensor& t) { return t.detach().clone().requires_grad_(true); }

at::Tensor or_zero(const at::Tensor& t, const at::Tensor& like) { return t.defined() ? t : at::zeros_like(like); }

at::Tensor jacobian(const Problem& problem, const at::Tensor& x, const at::Tensor& y, bool by_x) {
  const at::AutoGradMode grad_mode(true);
  const at::Tensor xv = variable(x), yv = variable(y);
  const at::Tensor r = grad({problem.inner_loss(xv, yv, Batch{})}, {yv}, {}, true, true)[0];
  std::vector<at::Tensor> jacobian_rows;
  for (int64_t i = 0; i < r.size(0); ++i) {
    const at::Tensor& by = by_x ? xv : yv;
    jacobian_rows.push_back(or_zero(grad({r[i]}, {by}, {}, true, false, true)[0], by.detach()));
  }
  return at::stack(jacobian_rows);
}

at::Tensor last_point(const Problem& problem, const at::Tensor& x, const PlainRule& rule, int64_t steps, int64_t held,
                      int64_t slice) {
  at::Tensor y = problem.initial_inner(x, slice);
  PlainState s = plain_start(rule, y.detach());
  const auto detach_all = [&] { y = y.detach(), s = {s.m.detach(), s.v.detach(), s.u.detach()}; };
  if (held > 0) detach_all();
  for (int64_t t = 0; t < steps; ++t) {
    Batch batch;
    batch.step = t;
    batch.slice = slice;
    const at::Tensor yg = y.requires_grad() ? y : variable(y);
    const at::Tensor g = grad({problem.inner_loss(x, yg, batch)}, {yg}, {}, true, true)[0];
    const auto h = problem.rule_hyperparameters(x, t);
    const at::TensorOptions like = y.options().requires_grad(false);
    const at::Tensor lr = rule.learned_lr ? h[0].second : at::scalar_tensor(rule.lr, like);
    const at::Tensor mu = rule.learned_momentum ? h[1].second : at::scalar_tensor(rule.momentum, like);
    y = plain_step(rule, t, yg, g, lr, mu, s);
    if (t + 1 <= held) detach_all();
  }
  return y;
}

}  // namespace

PlainState plain_start(const PlainRule& rule, const at::Tensor& y) {
  const at::Tensor zero = at::zeros_like(y);
  return {zero, zero + rule.accumulator, zero};
}

at::Tensor plain_step(const PlainRule& rule, int64_t t, const at::Tensor& y, at::Tensor g, const at::Tensor& lr,
                      const at::Tensor& mu, PlainState& s) {
  using Kind = PlainRule::Kind;
  const double n = static_cast<double>(t + 1);
  if (rule.clip_norm > 0 && g.norm().item<double>() + 1e-6 > rule.clip_norm) g = g * (rule.clip_norm / (g.norm() + 1e-6));
  if (!rule.decoupled) g = g + rule.weight_decay * y;
  switch (rule.kind) {
    case Kind::kSgd: {
      s.m = t == 0 ? g : mu * s.m + g;
      const bool buffered = rule.momentum != 0.0 || rule.learned_momentum;
      return y - lr * (!buffered ? g : rule.nesterov ? g + mu * s.m : s.m);
    }
    case Kind::kAdam: {
      s.m = rule.beta1 * s.m + (1 - rule.beta1) * g;
      s.v = rule.beta2 * s.v + (1 - rule.beta2) * g * g;
      s.u = rule.amsgrad ? at::max(s.u, s.v) : s.v;
      const at::Tensor m_hat = s.m / (1 - std::pow(rule.beta1, n)), v_hat = s.u / (1 - std::pow(rule.beta2, n));
      return (rule.decoupled ? y * (1 - lr * rule.weight_decay) : y) - lr * m_hat / (v_hat.sqrt() + rule.eps);
    }
    case Kind::kRmsprop:
      s.v = rule.decay * s.v + (1 - rule.decay) * g * g;
      s.u = rule.decay * s.u + (1 - rule.decay) * g;
      s.m = mu * s.m + g / ((rule.centered ? s.v - s.u * s.u : s.v).sqrt() + rule.eps);
      return y - lr * s.m;
    case Kind::kAdagrad: s.v = s.v + g * g; return y - lr * g / (s.v.sqrt() + rule.eps);
    case Kind::kAdadelta: {
      s.v = rule.decay * s.v + (1 - rule.decay) * g * g;
      const at::Tensor step = ((s.u + rule.eps) / (s.v + rule.eps)).sqrt() * g;
      s.u = rule.decay * s.u + (1 - rule.decay) * step * step;
      return y - lr * step;
    }
    case Kind::kAdamax:
      s.m = rule.beta1 * s.m + (1 - rule.beta1) * g;
      s.u = at::max(rule.beta2 * s.u, g.abs() + rule.eps);
      return y - lr / (1 - std::pow(rule.beta1, n)) * s.m / s.u;
  }
  return {};
}

at::Tensor hessian(const Problem& problem, const at::Tensor& x, const at::Tensor& y) { return jacobian(problem, x, y, false); }
at::Tensor cross(const Problem& problem, const at::Tensor& x, const at::Tensor& y) { return jacobian(problem, x, y, true); }

at::Tensor outer_grad_y(const Problem& problem, const at::Tensor& x, const at::Tensor& y) {
  const at::AutoGradMode grad_mode(true);
  const at::Tensor yv = variable(y);
  return or_zero(grad({problem.outer_loss(x, yv, Batch{})}, {yv}, {}, false, false, true)[0], y);
}

at::Tensor outer_grad_x(const Problem& problem, const at::Tensor& x, const at::Tensor& y) {
  const at::AutoGradMode grad_mode(true);
  const at::Tensor xv = variable(x);
  const at::Tensor loss = problem.outer_loss(xv, y, Batch{});
  if (!loss.requires_grad()) return at::zeros_like(x);
  return or_zero(grad({loss}, {xv}, {}, false, false, true)[0], x);
}

at::Tensor unrolled_loss(const Problem& problem, const at::Tensor& x, const PlainRule& rule, int64_t steps, int64_t held,
                         int64_t slice) {
  Batch batch;
  batch.slice = slice;
  return problem.outer_loss(x, last_point(problem, x, rule, steps, held, slice), batch);
}

at::Tensor unrolled_end(const Problem& problem, const at::Tensor& x, const PlainRule& rule, int64_t steps, int64_t slice) {
  const at::AutoGradMode grad_mode(true);
  return last_point(problem, x, rule, steps, steps, slice).detach();
}

at::Tensor unrolled_gradient(const Problem& problem, const at::Tensor& x, const PlainRule& rule, int64_t steps, int64_t held,
                             int64_t slice) {
  const at::AutoGradMode grad_mode(true);
  const at::Tensor xv = variable(x);
  return grad({unrolled_loss(problem, xv, rule, steps, held, slice)}, {xv})[0];
}

at::Tensor differences(const std::function<double(const at::Tensor&)>& f, const at::Tensor& x, double step) {
  at::Tensor result = at::zeros_like(x);
  for (int64_t i = 0; i < x.size(0); ++i) {
    at::Tensor plus = x.clone(), minus = x.clone();
    plus[i] += step;
    minus[i] -= step;
    result[i] = (f(plus) - f(minus)) / (2 * step);
  }
  return result;
}

double relative_error(const at::Tensor& a, const at::Tensor& b) { return ((a - b).norm() / b.norm()).item<double>(); }

RuleSolver rule_solver(const PlainRule& rule, int64_t steps, BatchPlan plan) {
  RuleSolverOptions options;
  options.lr = rule.lr;
  options.steps = steps;
  std::vector<std::string> learned;
  if (rule.learned_lr) learned.push_back("lr");
  if (rule.learned_momentum) learned.push_back("momentum");
  if (rule.kind == PlainRule::Kind::kAdam) {
    AdamRuleOptions adam;
    adam.beta1 = rule.beta1, adam.beta2 = rule.beta2, adam.eps = rule.eps;
    adam.weight_decay = rule.weight_decay, adam.decoupled = rule.decoupled, adam.learned = learned;
    return {std::make_unique<AdamRule>(adam), options, std::move(plan)};
  }
  SgdRuleOptions sgd;
  sgd.momentum = rule.momentum, sgd.weight_decay = rule.weight_decay, sgd.nesterov = rule.nesterov, sgd.learned = learned;
  return {std::make_unique<SgdRule>(sgd), options, std::move(plan)};
}

Hypergradient estimate(const Estimator& estimator, const Problem& problem, const InnerSolver& solver, const at::Tensor& x,
                       const Extras& extras) {
  const AutodiffOracle oracle(problem);
  const InnerStart start{.y = extras.y.defined() ? extras.y : problem.initial_inner(x, extras.slice).detach(),
                         .state = {},
                         .state_steps = 0,
                         .first_step = 0};
  InnerSolution solution = solver.solve(oracle, x, extras.slice, start, estimator.trajectory());
  Batch batch;
  batch.slice = extras.slice;
  EstimatorInput input{oracle, solver, x, solution, batch, batch, extras.q0};
  input.cold_start = !extras.y.defined();
  input.damping = extras.damping;
  input.start = start;
  input.bound = extras.bound;
  return estimator.estimate(input);
}

void expect_nothing_else_gives(const at::Tensor& expected, const std::string& own, const Problem& problem,
                               const InnerSolver& solver, const at::Tensor& x, double distance) {
  EXPECT_GT(expected.norm().item<double>(), 0.0);
  for (const EstimatorRow& row : estimators()) {
    const auto through_all_steps = [](const std::string& name) { return name == "unrolled" || name == "forward"; };
    if (row.name == own || (through_all_steps(row.name) && through_all_steps(own))) continue;
    const auto at_the_optimum = [](const std::string& name) { return name == "implicit" || name == "functional"; };
    const bool linear = problem.output_layer() && output_layer_positions(problem).size(0) == problem.inner_layout().size();
    if (linear && at_the_optimum(row.name) && at_the_optimum(own)) continue;
    Section section = Config::parse("", "test.toml").root();
    const auto estimator = make_estimator(row.name, section);
    if (!estimator->objections(problem, solver).empty()) continue;
    const Hypergradient other = estimate(*estimator, problem, solver, x);
    EXPECT_GT(relative_error(other.value, expected), distance) << own << " and " << row.name;
    EXPECT_GT(relative_error(other.direct, expected), distance) << own << " and the direct term";
  }
}

TEST(PlainReference, UnrollsWhatItsDifferencesSay) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  PlainRule rule;
  rule.kind = PlainRule::Kind::kAdam;
  const auto loss = [&](const at::Tensor& at_x) { return unrolled_loss(problem, at_x, rule, 5).item<double>(); };
  EXPECT_LT(relative_error(unrolled_gradient(problem, x, rule, 5), differences(loss, x)), 1e-7);
}

TEST(PlainReference, HessianAndCrossAreTheQuadraticsOwn) {
  const QuadraticProblem problem;
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0);
  EXPECT_LT(relative_error(hessian(problem, x, y), problem.A()), 1e-14);
  EXPECT_LT(relative_error(cross(problem, x, y), -problem.B()), 1e-14);
}

}  // namespace bilevel::testing
