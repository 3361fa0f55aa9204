#include "bilevel/inner/adamax.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/rules_for_tests.h"

// The steps themselves are compared with torch.optim in torch_optim_test.cpp.

namespace bilevel {
namespace {

using namespace test;

TEST(AdamaxRule, DerivativesAgreeWithDifferencesForEveryInput) {
  for (const double beta2 : {0.2, 0.99}) {  // the gradient is the maximum, or the past is
    const AdamaxRule rule({.lr = 0.1, .beta1 = 0.8, .beta2 = beta2, .eps = 1e-3, .weight_decay = 0.3});
    for (const int64_t step : {0, 3}) {
      for (const bool elementwise : {false, true}) {
        RuleInput in = random_input(rule, step, elementwise);
        in.gradient = in.gradient + 2 * in.gradient.sign();  // u is far from 0, where differences would be poor
        check_derivatives(rule, in);
      }
    }
  }
}

TEST(AdamaxRule, HasFiniteDerivativesWhereNoGradientHasBeenSeen) {
  expect_finite_derivatives_at_rest(AdamaxRule({.lr = 0.1}));
  expect_finite_derivatives_at_rest(AdamaxRule({.lr = 0.1, .eps = 0.0}));
}

TEST(AdamaxRule, TakesTheDerivativeOfThePastAtATie) {
  // u' = max(β₂ u, |G| + ε) with both 1: ∂u'/∂u = β₂ and ∂u'/∂G = 0.
  const AdamaxRule rule({.lr = 1.0, .beta1 = 0.0, .beta2 = 0.5, .eps = 0.0});
  const at::Tensor y = at::zeros({1}, at::kDouble), one = at::ones({1}, at::kDouble);
  const RuleInput in{y, {y, 2 * one}, one, rule.default_h(y), 0};
  const RuleCotangent bar = rule.vjp(in, y, {y, one});
  EXPECT_EQ(bar.state[1].item<double>(), 0.5);
  EXPECT_EQ(bar.gradient.item<double>(), 0.0);
}

TEST(AdamaxRule, RefusesOptionsThatMakeNoSense) {
  EXPECT_THROW(AdamaxRule({.beta2 = 1.0}), Error);
  EXPECT_THROW(AdamaxRule({.learned = {"betas"}}), Error);
}

}  // namespace
}  // namespace bilevel
