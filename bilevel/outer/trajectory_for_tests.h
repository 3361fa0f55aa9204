#pragma once
#include <ATen/ATen.h>

#include <vector>

#include "bilevel/outer/outer_optimizer.h"

namespace bilevel::test {

/// The gradient of 1.5 (x₀ − 1)² + cos x₁ + x₀ x₁ + 0.25 x₂⁴.
inline at::Tensor gradient_at(const at::Tensor& x) { return at::stack({3 * (x[0] - 1) + x[1], x[0] - x[1].sin(), x[2].pow(3)}); }

inline at::Tensor start() { return at::tensor({0.3, -1.2, 2.0}, at::kDouble); }

inline at::Tensor run(const OuterOptimizer& rule, State& state, at::Tensor x, int steps) {
  for (int i = 0; i < steps; ++i) x = rule.step(state, x, gradient_at(x));
  return x;
}

/// ‖x − expected‖∞ after six steps from `start`.
inline double error_after_six(const OuterOptimizer& rule, std::vector<double> expected) {
  State state;
  return (run(rule, state, start(), 6) - at::tensor(expected, at::kDouble)).abs().max().item<double>();
}

}  // namespace bilevel::test
