// Ridge regression with a strength of its own for each feature, chosen by the loss on other data.
#include <ATen/ATen.h>

#include <cstdio>

#include "bilevel/core/stream.h"
#include "bilevel/problem/function_problem.h"
#include "bilevel/run/minimize.h"

int main() {
  // Five features, of which the first two matter; 20 samples to learn from, 400 to validate on.
  const at::Tensor truth = at::tensor({2.0, -1.0, 0.0, 0.0, 0.0}, at::kDouble);
  const bilevel::Stream random(/*seed=*/0, "data");
  const at::Tensor X = random.at(0).normal({20, 5}), t = X.mv(truth) + random.at(1).normal({20});
  const at::Tensor V = random.at(2).normal({400, 5}), s = V.mv(truth) + random.at(3).normal({400});

  // x: the logarithm of each strength.   y: the weights of the regression.
  const auto inner_loss = [&](const at::Tensor& x, const at::Tensor& y) {
    return 0.5 * (X.mv(y) - t).square().mean() + 0.5 * (x.exp() * y.square()).sum();
  };
  const auto outer_loss = [&](const at::Tensor&, const at::Tensor& y) { return 0.5 * (V.mv(y) - s).square().mean(); };

  const bilevel::FunctionProblem problem({.inner_loss = inner_loss,
                                          .outer_loss = outer_loss,
                                          .x0 = at::full({5}, -2.0, at::kDouble),
                                          .y0 = at::zeros({5}, at::kDouble)});
  const bilevel::MinimizeResult result = bilevel::minimize(problem, {.steps = 50});

  std::printf("validation loss %.3f -> %.3f\n", result.history.front().outer_loss, result.history.back().outer_loss);
  for (int i = 0; i < 5; ++i) {
    std::printf("feature %d: strength %.3f, weight %+.3f\n", i, result.x[i].exp().item<double>(), result.y[i].item<double>());
  }
}
