#include "bilevel/inner/update_rule.h"

#include <gtest/gtest.h>

#include "bilevel/inner/rules_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

/// Descent along the gradient divided by its norm, and a state that counts and depends on nothing: not elementwise, and derived
/// by the base class alone.
class Normalised final : public UpdateRule {
 public:
  std::string_view name() const override { return "normalised"; }
  int64_t slots() const override { return 1; }
  std::vector<std::string> hyperparameters() const override { return {"lr", "unused"}; }
  std::vector<double> defaults() const override { return {0.3, 2.0}; }
  RuleOutput step(const RuleInput& in) const override {
    return {in.y - in.h[0] * in.gradient / in.gradient.norm(), {at::full_like(in.y, static_cast<double>(in.step + 1))}};
  }
};

TEST(UpdateRule, DerivesARuleOfWholeVectors) {
  check_derivatives(Normalised(), 0, false);
  check_derivatives(Normalised(), 2, true);
}

TEST(UpdateRule, DerivesWithGradientsSwitchedOffAndLeavesItsInputsAlone) {
  const Normalised rule;
  const RuleInput in = random_input(rule, 1, false);
  const at::NoGradGuard off;
  const RuleCotangent bar = rule.vjp(in, at::ones_like(in.y), {at::ones_like(in.y)});
  EXPECT_TRUE(at::equal(bar.y, at::ones_like(in.y)));
  EXPECT_NEAR(bar.h[0].item<double>(), -(in.gradient.sum() / in.gradient.norm()).item<double>(), 1e-14);
  EXPECT_EQ(bar.h[1].item<double>(), 0.0);
  EXPECT_EQ(bar.state[0].abs().sum().item<double>(), 0.0);
  EXPECT_FALSE(bar.gradient.requires_grad());
  EXPECT_FALSE(in.y.requires_grad());
}

TEST(UpdateRule, StartsFromZeroStateAndItsOwnDefaults) {
  const Normalised rule;
  const at::Tensor y = at::ones({3}, at::kFloat);
  ASSERT_EQ(rule.fresh_state(y).size(), 1u);
  EXPECT_TRUE(at::equal(rule.fresh_state(y)[0], at::zeros({3}, at::kFloat)));
  const Tensors h = rule.default_h(y);
  EXPECT_EQ(h[0].scalar_type(), at::kFloat);
  EXPECT_EQ(h[0].dim(), 0);
  EXPECT_NEAR(h[0].item<double>(), 0.3, 1e-7);
}

}  // namespace
}  // namespace bilevel
