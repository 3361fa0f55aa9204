#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "bilevel/hypergrad/estimator.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/problem/problem.h"

/// Slow and plain ways to the quantities that estimators define, which share no code with them.
namespace bilevel::testing {

/// ∂(∂y g)/∂y [dy, dy], row by row by autograd.
at::Tensor hessian(const Problem& problem, const at::Tensor& x, const at::Tensor& y);
/// ∂(∂y g)/∂x [dy, dx].
at::Tensor cross(const Problem& problem, const at::Tensor& x, const at::Tensor& y);
/// ∂y f and ∂x f.
at::Tensor outer_grad_y(const Problem& problem, const at::Tensor& x, const at::Tensor& y);
at::Tensor outer_grad_x(const Problem& problem, const at::Tensor& x, const at::Tensor& y);

struct PlainRule {
  enum class Kind { kSgd, kAdam, kRmsprop, kAdagrad, kAdadelta, kAdamax } kind = Kind::kSgd;
  double lr = 0.1, momentum = 0.0, weight_decay = 0.0, beta1 = 0.9, beta2 = 0.999, eps = 1e-8;
  bool nesterov = false, decoupled = false;
  bool learned_lr = false, learned_momentum = false;  // taken from Problem::rule_hyperparameters, in that order
  bool amsgrad = false, centered = false;
  double decay = 0.99;       // alpha of RMSprop, rho of Adadelta
  double accumulator = 0.0;  // of Adagrad, at the start
  double clip_norm = 0.0;    // 0: none
};

/// What a rule remembers: momentum or mean, sum or mean of squares, and a third where there is one.
struct PlainState {
  at::Tensor m, v, u;
};
PlainState plain_start(const PlainRule& rule, const at::Tensor& y);
/// y after step t (from 0) along the gradient g; the state becomes the next one.
at::Tensor plain_step(const PlainRule& rule, int64_t t, const at::Tensor& y, at::Tensor g, const at::Tensor& lr,
                      const at::Tensor& mu, PlainState& state);

/// f(x, y_T(x)) in one graph through all T steps, the optimisers as their papers write them; the first `held` steps are detached.
at::Tensor unrolled_loss(const Problem& problem, const at::Tensor& x, const PlainRule& rule, int64_t steps, int64_t held = 0,
                         int64_t slice = 0);
/// y_T without a graph.
at::Tensor unrolled_end(const Problem& problem, const at::Tensor& x, const PlainRule& rule, int64_t steps, int64_t slice = 0);
/// Its derivative by x.
at::Tensor unrolled_gradient(const Problem& problem, const at::Tensor& x, const PlainRule& rule, int64_t steps, int64_t held = 0,
                             int64_t slice = 0);

/// Central differences of `f` at x.
at::Tensor differences(const std::function<double(const at::Tensor&)>& f, const at::Tensor& x, double step = 1e-5);

/// ‖a − b‖ / ‖b‖
double relative_error(const at::Tensor& a, const at::Tensor& b);

/// The engine's solver for a plain rule.
RuleSolver rule_solver(const PlainRule& rule, int64_t steps, BatchPlan plan = BatchPlan::full());

struct Extras {
  int64_t slice = 0;
  at::Tensor y = {};  // a warm start
  at::Tensor q0 = {};
  double damping = 0.0;
  bool bound = false;
};
/// Solves the inner problem at x and asks `estimator`.
Hypergradient estimate(const Estimator& estimator, const Problem& problem, const InnerSolver& solver, const at::Tensor& x,
                       const Extras& extras = {});

/// Expects zero, the direct term and every estimator of the registry that serves here, other than `own`, to be farther than
/// `distance`, relative, from `expected`, which `own` defines.
void expect_nothing_else_gives(const at::Tensor& expected, const std::string& own, const Problem& problem,
                               const InnerSolver& solver, const at::Tensor& x, double distance);

}  // namespace bilevel::testing
