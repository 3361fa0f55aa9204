#pragma once
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/outer/outer_optimizer.h"

namespace bilevel {

struct OuterBfgsOptions {
  double max_step = 1.0;  // the most that any x moves in a step: F is known along no line, so nothing else holds a step back
  int64_t history = 10;   // pairs of steps and changes of the gradient
  std::vector<std::string> violations() const;
};
/// Keys: max_step, history.
void read(Section& section, OuterBfgsOptions& options);

/// Limited-memory BFGS (Liu & Nocedal 1989) without a line search, for a few x and hypergradients of little noise: an evaluation
/// of F costs an inner solve, and the step of length one is nearly always the right one. Of one x it is the secant method.
///
/// Steps are shortened, in proportion, to `max_step`. Where the gradient has changed against the curvature of a convex function
/// the memory is dropped, and x moves by max_step along −dF/dx. State: `outer.x`, `outer.gradient` [dx], and `outer.s`,
/// `outer.z` [pairs, dx].
class OuterBfgs final : public OuterOptimizer {
 public:
  explicit OuterBfgs(OuterBfgsOptions options);
  std::string_view name() const override { return "bfgs"; }
  at::Tensor step(State& state, const at::Tensor& x, const at::Tensor& gradient) const override;

 private:
  void learn(State& state, const at::Tensor& x, const at::Tensor& gradient) const;
  OuterBfgsOptions options_;
};

}  // namespace bilevel
