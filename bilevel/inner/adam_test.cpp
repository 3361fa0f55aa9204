#include "bilevel/inner/adam.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/rules_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

AdamRuleOptions adamw(double lr, double weight_decay = 0.01) {
  AdamRuleOptions options = AdamRuleOptions::adamw();
  options.lr = lr;
  options.weight_decay = weight_decay;
  return options;
}

// From PyTorch 2.13.0 with the program in sgd_test.cpp and the constructor named beside each.
TEST(AdamRule, TakesTheStepsOfTorchOptim) {
  // Adam(lr=0.1)
  expect_end(AdamRule({.lr = 0.1}), {0.7690190830042198, -0.8954237462095955, 1.0149232810390325});
  // Adam(lr=0.2, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.3)
  expect_end(AdamRule({.lr = 0.2, .beta1 = 0.7, .beta2 = 0.9, .eps = 1e-3, .weight_decay = 0.3}),
             {0.7314594761489484, -1.4495785587595793, 0.9034998875645199});
  // Adam(lr=0.3, betas=(0.5, 0.6), amsgrad=True)
  expect_end(AdamRule({.lr = 0.3, .beta1 = 0.5, .beta2 = 0.6, .amsgrad = true}),
             {0.8892373462270929, -1.744876525379678, 1.1118337400431433});
  // AdamW(lr=0.1)
  expect_end(AdamRule(adamw(0.1)), {0.767304008193294, -0.8919591641208293, 1.0146799746363486});
  // AdamW(lr=0.3, betas=(0.5, 0.6), weight_decay=0.3, amsgrad=True)
  AdamRuleOptions options = adamw(0.3, 0.3);
  options.beta1 = 0.5;
  options.beta2 = 0.6;
  options.amsgrad = true;
  expect_end(AdamRule(options), {0.7797139184847754, -1.4058068344082881, 0.9955920661035864});
}

TEST(AdamRule, DerivativesAgreeWithDifferencesAndAutogradForEveryInput) {
  for (const bool decoupled : {false, true}) {
    for (const bool amsgrad : {false, true}) {
      const AdamRule rule(
          {.lr = 0.1, .beta1 = 0.8, .beta2 = 0.7, .weight_decay = 0.3, .decoupled = decoupled, .amsgrad = amsgrad});
      for (const int64_t step : {0, 3}) {
        for (const bool elementwise : {false, true}) check_derivatives(rule, step, elementwise);
      }
    }
  }
}

TEST(AdamRule, HasZeroDerivativesWhereNoGradientHasBeenSeen) {
  for (const bool amsgrad : {false, true}) {
    const AdamRule rule({.lr = 0.1, .amsgrad = amsgrad});
    RuleInput in = random_input(rule, 0, false, 2);
    in.state = rule.fresh_state(in.y);
    in.h[1] = at::zeros({}, at::kDouble);
    in.gradient = at::tensor({0.0, 1.0}, at::kDouble);
    const at::Tensor ones = at::ones({2}, at::kDouble);
    Tensors zeros;
    for (const auto& s : in.state) zeros.push_back(at::zeros_like(s));

    EXPECT_EQ(rule.step(in).y[0].item<double>(), in.y[0].item<double>());
    for (const auto& bar : {rule.vjp(in, ones, zeros), rule.UpdateRule::vjp(in, ones, zeros)}) {
      EXPECT_EQ(bar.gradient[0].item<double>(), 0.0);
      for (const auto& tensor : flat(bar)) EXPECT_TRUE(tensor.isfinite().all().item<bool>());
      // Beside it, ∂y'/∂g = −η ∂(g/(|g| + ε))/∂g = −η ε/(1 + ε)², with ε = 1e-8.
      EXPECT_NEAR(bar.gradient[1].item<double>(), -in.h[0].item<double>() * 1e-8, 1e-15);
    }
    RuleCotangent tangent = random_tangent(in, 0);
    tangent.y = at::zeros({2}, at::kDouble);
    tangent.h = {at::zeros({}, at::kDouble), at::zeros({}, at::kDouble)};
    tangent.state = zeros;
    for (const auto& out : {rule.jvp(in, tangent), rule.UpdateRule::jvp(in, tangent)}) {
      EXPECT_EQ(out.y[0].item<double>(), 0.0);
      EXPECT_TRUE(out.y.isfinite().all().item<bool>());
    }
  }
}

TEST(AdamRule, SaysWhereItStops) {
  EXPECT_TRUE(AdamRule({.weight_decay = 0.3}).stops_at_stationarity());
  EXPECT_EQ(AdamRule({.weight_decay = 0.3}).coupled_weight_decay(), 0.3);
  EXPECT_TRUE(AdamRule(adamw(0.1)).stops_at_stationarity());
  EXPECT_EQ(AdamRule(adamw(0.1)).coupled_weight_decay(), 0.0);
  AdamRuleOptions options = adamw(0.1);
  options.amsgrad = true;
  EXPECT_FALSE(AdamRule(options).stops_at_stationarity());
}

// The elements of y settle apart from each other on ½ Σ aⱼ (yⱼ − cⱼ)²: with ε as large as the gradient near the minimum or far
// past it, and where the decay holds yⱼ at 1/w.
TEST(AdamRule, RestsWhereItsResidualIsZero) {
  const at::Tensor a = at::tensor({1.0, 2.0, 0.5}, at::kDouble), c = at::tensor({1.0, -2.0, 6.0}, at::kDouble);
  for (const bool decoupled : {true, false}) {
    AdamRuleOptions options{.lr = 0.02, .eps = 0.5, .weight_decay = 0.3, .decoupled = decoupled};
    options.beta2 = 0.99;
    const AdamRule rule(options);
    at::Tensor y = at::zeros({3}, at::kDouble);
    Tensors state = rule.fresh_state(y);
    for (int64_t t = 0; t < 6000; ++t) {
      RuleOutput out = rule.step({y, state, a * (y - c), rule.default_h(y), t});
      y = out.y;
      state = out.state;
    }
    const at::Tensor g = a * (y - c), r = rule.residual(y, g, rule.default_h(y));
    EXPECT_LT(r.norm().item<double>(), 1e-10 * g.norm().item<double>()) << decoupled << ": " << r << g;
    const at::Tensor other = decoupled ? g + 0.3 * y : g + 0.3 * (g.abs() + 0.5) * y;
    EXPECT_GT(other.norm().item<double>(), 0.05 * g.norm().item<double>());
  }
}

TEST(AdamRule, OffersWhatItDividesByAsAPreconditioner) {
  const AdamRule rule({.beta1 = 0.0, .beta2 = 0.9, .eps = 0.1});
  const at::Tensor y = at::zeros({2}, at::kDouble), g = at::tensor({4.0, -0.5}, at::kDouble);
  Tensors state = rule.fresh_state(y);
  for (int64_t t = 0; t < 3; ++t) state = rule.step({y, state, g, rule.default_h(y), t}).state;
  EXPECT_TRUE(at::allclose(rule.preconditioner(state, 3), 1 / (g.abs() + 0.1), 1e-13, 0));
}

TEST(AdamRule, RefusesOptionsThatMakeNoSense) {
  EXPECT_THROW(AdamRule({.beta1 = 1.0}), Error);
  EXPECT_THROW(AdamRule({.eps = -1}), Error);
  EXPECT_THROW(AdamRule({.learned = {"beta1"}}), Error);
}

}  // namespace
}  // namespace bilevel
