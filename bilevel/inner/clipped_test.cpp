#include "bilevel/inner/clipped.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/rmsprop.h"
#include "bilevel/inner/rules_for_tests.h"
#include "bilevel/inner/sgd.h"

// The steps themselves are compared with torch.optim in torch_optim_test.cpp.

namespace bilevel {
namespace {

using namespace test;

std::unique_ptr<UpdateRule> sgd(double weight_decay = 0.2) {
  return std::make_unique<SgdRule>(SgdRuleOptions{.lr = 0.1, .momentum = 0.8, .weight_decay = weight_decay});
}

TEST(ClippedRule, DerivativesAreThoseOfTheWholeStepWhereItClipsAndWhereNot) {
  for (const double max_norm : {0.5, 1e3}) {
    for (const bool elementwise : {false, true}) {
      check_derivatives(ClippedRule(sgd(), max_norm), 3, elementwise);
      check_derivatives(
          ClippedRule(std::make_unique<AdamRule>(AdamRuleOptions{.lr = 0.1, .beta2 = 0.8, .weight_decay = 0.3}), max_norm), 2,
          elementwise);
      check_derivatives(ClippedRule(std::make_unique<RmspropRule>(RmspropRuleOptions{.lr = 0.1, .weight_decay = 0.3}), max_norm),
                        2, elementwise);
    }
  }
}

TEST(ClippedRule, IsTheRuleItselfBelowTheNormAndAtAZeroGradient) {
  const ClippedRule rule(sgd(), 1e3);
  RuleInput in = random_input(rule, 1, false);
  EXPECT_TRUE(at::equal(rule.step(in).y, sgd()->step(in).y));
  in.gradient = at::zeros_like(in.y);
  for (const auto& clipping : {1e3, 1e-3}) {
    for (const auto& tensor : flat(ClippedRule(sgd(), clipping).vjp(in, at::ones_like(in.y), {in.y}))) {
      EXPECT_TRUE(tensor.isfinite().all().item<bool>());
    }
  }
}

TEST(ClippedRule, RestsWhereTheClippedGradientBalancesTheDecay) {
  const at::Tensor y = at::tensor({3.0, 4.0}, at::kDouble), g = at::tensor({-30.0, -40.0}, at::kDouble);
  const ClippedRule decayed(sgd(), 1.0), plain(sgd(0.0), 1.0);
  // g/‖g‖ = −(0.6, 0.8), and 0.2 y = (0.6, 0.8).
  EXPECT_LT(decayed.residual(y, g, sgd()->default_h(y)).norm().item<double>(), 1e-7);
  EXPECT_TRUE(plain.residual(y, g, sgd()->default_h(y)).is_same(g));
  EXPECT_EQ(decayed.name(), "sgd");
}

TEST(ClippedRule, RefusesANormThatIsNotPositive) { EXPECT_THROW(ClippedRule(sgd(), 0.0), Error); }

}  // namespace
}  // namespace bilevel
