#include "bilevel/inner/rmsprop.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/rules_for_tests.h"

// The steps themselves are compared with torch.optim in torch_optim_test.cpp.

namespace bilevel {
namespace {

using namespace test;

TEST(RmspropRule, DerivativesAgreeWithDifferencesForEveryInput) {
  for (const bool centered : {false, true}) {
    for (const double momentum : {0.0, 0.6}) {
      const RmspropRule rule(
          {.lr = 0.1, .alpha = 0.8, .eps = 1e-3, .weight_decay = 0.3, .momentum = momentum, .centered = centered});
      for (const bool elementwise : {false, true}) {
        RuleInput in = random_input(rule, 3, elementwise);
        in.state[0] = in.state[0] + 2;  // a variance needs v > a²
        check_derivatives(rule, in);
      }
    }
  }
  const RmspropRule learned({.lr = 0.1, .learned = {"lr", "momentum", "weight_decay"}});
  check_derivatives(learned, 2, false);
}

TEST(RmspropRule, HasFiniteDerivativesWhereNoGradientHasBeenSeen) {
  for (const bool centered : {false, true}) {
    expect_finite_derivatives_at_rest(RmspropRule({.lr = 0.1, .momentum = 0.5, .centered = centered}));
  }
}

TEST(RmspropRule, TakesAVarianceThatIsNegativeByRoundingForZero) {
  const RmspropRule rule({.lr = 0.1, .eps = 0.5, .centered = true});
  const at::Tensor y = at::zeros({1}, at::kDouble), g = at::full({1}, 0.1, at::kDouble);
  // v = a² and G = a, less one ulp in v: u is not positive.
  RuleInput in{y, {g * g * (1 - 1e-15), g}, g, rule.default_h(y), 5};
  EXPECT_NEAR(rule.step(in).y.item<double>(), -0.1 * 0.1 / 0.5, 1e-7);
  EXPECT_TRUE(std::isfinite(rule.vjp(in, at::ones({1}, at::kDouble), {y, y}).gradient.item<double>()));
}

TEST(RmspropRule, HasABufferOnlyWhereMomentumCanBeNonZero) {
  EXPECT_EQ(RmspropRule({}).slots(), 1);
  EXPECT_EQ(RmspropRule({.momentum = 0.5, .centered = true}).slots(), 3);
  EXPECT_EQ(RmspropRule({.learned = {"momentum"}}).hyperparameters(),
            (std::vector<std::string>{"lr", "momentum", "weight_decay"}));
}

TEST(RmspropRule, RefusesOptionsThatMakeNoSense) {
  EXPECT_THROW(RmspropRule({.alpha = 1.0}), Error);
  EXPECT_THROW(RmspropRule({.learned = {"alpha"}}), Error);
  EXPECT_EQ((RmspropRuleOptions{.lr = -1, .eps = -1, .momentum = -1}).violations().size(), 3u);
}

}  // namespace
}  // namespace bilevel
