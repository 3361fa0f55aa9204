// A deep equilibrium: the inner variables are a fixed point y = tanh(W y + U x) and no minimum of anything. Which input x makes
// the network settle nearest to a given state?
#include <ATen/ATen.h>

#include <cmath>
#include <cstdio>

#include "bilevel/core/stream.h"
#include "bilevel/problem/function_problem.h"
#include "bilevel/run/minimize.h"

int main() {
  const bilevel::Stream random(/*seed=*/1, "weights");
  const at::Tensor W = 0.2 * random.at(0).normal({6, 6}), U = random.at(1).normal({6, 2});
  const at::Tensor goal = at::tanh(U.mv(at::tensor({0.5, -0.3}, at::kDouble)));

  const bilevel::FunctionProblem problem({
      .outer_loss = [&](const at::Tensor&, const at::Tensor& y) { return 0.5 * (y - goal).square().sum(); },
      .x0 = at::zeros({2}, at::kDouble),
      .y0 = at::zeros({6}, at::kDouble),
      // r(x, y), zero at the fixed point. Its derivative by y is not symmetric, hence neither is cg's matrix: GMRES.
      .optimality_map = [&](const at::Tensor& x, const at::Tensor& y) { return y - at::tanh(W.mv(y) + U.mv(x)); },
  });
  const bilevel::MinimizeResult result =
      bilevel::minimize(problem, {.inner_steps = 50, .lr = 1.0, .solver = "gmres", .outer_lr = 0.05, .steps = 60});

  std::printf("distance to the goal %.3f -> %.3f\n", std::sqrt(2 * result.history.front().outer_loss),
              std::sqrt(2 * result.history.back().outer_loss));
  std::printf("x = (%.3f, %.3f)\n", result.x[0].item<double>(), result.x[1].item<double>());
}
