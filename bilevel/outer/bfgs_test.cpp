#include "bilevel/outer/bfgs.h"

#include <gtest/gtest.h>

#include <cmath>

#include "bilevel/outer/trajectory_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

at::Tensor vector(std::vector<double> values) { return at::tensor(values, at::kDouble); }

TEST(OuterBfgs, IsTheSecantMethodOfOneVariable) {
  // F' = x² − 2 for x > 0: 1 → 2 (max_step), and then where the secant through both vanishes
  const OuterBfgs bfgs({});
  State state;
  const auto gradient = [](const at::Tensor& x) { return x * x - 2; };
  at::Tensor x = vector({1.0});
  x = bfgs.step(state, x, gradient(x));
  EXPECT_EQ(x.item<double>(), 2.0);
  x = bfgs.step(state, x, gradient(x));
  EXPECT_NEAR(x.item<double>(), 2.0 - 2.0 / 3.0, 1e-14);
  for (int i = 0; i < 5; ++i) x = bfgs.step(state, x, gradient(x));
  EXPECT_NEAR(x.item<double>(), std::sqrt(2.0), 1e-12);
}

// On a quadratic of d variables exact line searches would need d steps; steps of length one need a few more.
TEST(OuterBfgs, FindsTheMinimumOfAQuadraticThatGradientDescentDoesNot) {
  const at::Tensor curvature = vector({100.0, 10.0, 1.0, 0.1, 3.0}), minimum = vector({0.3, -0.2, 0.5, 2.0, -1.0});
  const OuterBfgs bfgs({.max_step = 2.0});
  State state;
  at::Tensor x = at::zeros({5}, at::kDouble);
  for (int i = 0; i < 40; ++i) x = bfgs.step(state, x, curvature * (x - minimum));
  EXPECT_LT((x - minimum).norm().item<double>(), 1e-6);
}

TEST(OuterBfgs, FindsTheMinimumWhereTheCurvatureChanges) {
  // Σ log cosh(a (x − m)), nearly linear far from m, and so flat there that a Newton step would go much too far.
  const at::Tensor a = vector({3.0, 1.0, 0.5}), m = vector({0.2, -1.0, 2.0});
  const auto gradient = [&](const at::Tensor& x) { return a * (a * (x - m)).tanh(); };
  const OuterBfgs bfgs({.max_step = 0.5});
  State state;
  at::Tensor x = vector({4.0, 3.0, -3.0});
  for (int i = 0; i < 60; ++i) x = bfgs.step(state, x, gradient(x));
  EXPECT_LT((x - m).norm().item<double>(), 1e-6);
}

TEST(OuterBfgs, MovesByTheLongestStepWhereTheFunctionIsConcave) {
  // F = −cosh x: away from 0, farther each time, but never by more than max_step.
  const OuterBfgs bfgs({.max_step = 0.25});
  State state;
  at::Tensor x = vector({0.1});
  for (int i = 1; i <= 4; ++i) {
    x = bfgs.step(state, x, -x.sinh());
    EXPECT_NEAR(x.item<double>(), 0.1 + 0.25 * i, 1e-14);
  }
}

TEST(OuterBfgs, StaysWhereTheGradientIsZero) {
  const OuterBfgs bfgs({});
  State state;
  const at::Tensor x = vector({1.0, 2.0});
  EXPECT_TRUE(at::equal(bfgs.step(state, x, at::zeros_like(x)), x));
  EXPECT_TRUE(at::equal(bfgs.step(state, x, at::zeros_like(x)), x));
}

}  // namespace
}  // namespace bilevel
