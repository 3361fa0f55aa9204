#include "bilevel/inner/sgd.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/rules_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

// The numbers come from PyTorch 2.13.0, with the constructor named beside each:
//
//   A = torch.tensor([[2, .5, 0], [.5, 1, .2], [0, .2, .5]], dtype=torch.float64); b = torch.tensor([1., -2, .5],
//   dtype=torch.float64) y = torch.tensor([.3, -.2, .9], dtype=torch.float64, requires_grad=True); o = SGD([y], …) for _ in
//   range(7): o.zero_grad(); (0.5*y@A@y - b@y + 0.05*(y**4).sum()).backward(); o.step()
TEST(SgdRule, TakesTheStepsOfTorchOptim) {
  // SGD(lr=0.1)
  expect_end(SgdRule({.lr = 0.1}), {0.6212393250795314, -1.2764174233800787, 0.9341668630679502});
  // SGD(lr=0.1, weight_decay=0.3)
  expect_end(SgdRule({.lr = 0.1, .weight_decay = 0.3}), {0.5586091959508953, -1.157509504232167, 0.7970773553341369});
  // SGD(lr=0.1, momentum=0.9)
  expect_end(SgdRule({.lr = 0.1, .momentum = 0.9}), {1.2345382727369807, -2.357596773192091, 1.1094358037432182});
  // SGD(lr=0.1, momentum=0.8, dampening=0.4, weight_decay=0.2)
  expect_end(SgdRule({.lr = 0.1, .momentum = 0.8, .dampening = 0.4, .weight_decay = 0.2}),
             {0.8284630962885519, -1.906719545993132, 0.8022236761428835});
  // SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.05)
  expect_end(SgdRule({.lr = 0.1, .momentum = 0.9, .weight_decay = 0.05, .nesterov = true}),
             {1.0827192851025709, -1.9195895986680047, 1.115987330019196});
}

TEST(SgdRule, DerivativesAgreeWithDifferencesAndAutogradForEveryInput) {
  const std::vector<SgdRuleOptions> variants{
      {.lr = 0.1},
      {.lr = 0.1, .weight_decay = 0.3},
      {.lr = 0.1, .momentum = 0.9},
      {.lr = 0.1, .momentum = 0.8, .dampening = 0.4, .weight_decay = 0.2},
      {.lr = 0.1, .momentum = 0.9, .weight_decay = 0.05, .nesterov = true},
      {.lr = 0.1, .learned = {"lr", "momentum", "dampening", "weight_decay"}},
  };
  for (const auto& options : variants) {
    const bool decays = options.weight_decay != 0 || !options.learned.empty();
    for (const int64_t step : {0, 3}) {
      for (const bool elementwise : {false, true}) {
        if (decays) {
          check_derivatives(SgdRule(options), step, elementwise);
        } else {
          // A decay that is 0 for good is left out of the step, so that differences by it need it to be declared.
          SgdRuleOptions declared = options;
          declared.learned = {"weight_decay"};
          check_derivatives(SgdRule(declared), step, elementwise);
        }
      }
    }
  }
}

TEST(SgdRule, LeavesOutADecayThatIsZeroForGood) {
  const SgdRule plain({.lr = 0.1}), declared({.lr = 0.1, .learned = {"weight_decay"}});
  RuleInput in = random_input(plain, 2, true);
  in.h[1] = at::zeros({}, at::kDouble);
  const at::Tensor w = at::arange(1, 7, at::kDouble);
  EXPECT_LT(distance(flat(plain.vjp(in, w, {})), flat(declared.vjp(in, w, {}))), 1e-15);
  const RuleCotangent tangent = random_tangent(in, 0);
  EXPECT_LT(distance(flat(plain.jvp(in, tangent)), flat(declared.jvp(in, tangent))), 1e-15);
}

TEST(SgdRule, HasABufferOnlyWhereMomentumCanBeNonZero) {
  EXPECT_EQ(SgdRule({}).slots(), 0);
  EXPECT_EQ(SgdRule({.momentum = 0.5}).slots(), 1);
  EXPECT_EQ(SgdRule({.learned = {"momentum"}}).slots(), 1);
  EXPECT_EQ(SgdRule({}).hyperparameters(), (std::vector<std::string>{"lr", "weight_decay"}));
  EXPECT_EQ(SgdRule({.momentum = 0.5}).hyperparameters(),
            (std::vector<std::string>{"lr", "momentum", "dampening", "weight_decay"}));
}

TEST(SgdRule, SaysWhereItStops) {
  EXPECT_TRUE(SgdRule({.weight_decay = 0.3}).stops_at_stationarity());
  EXPECT_EQ(SgdRule({.weight_decay = 0.3}).coupled_weight_decay(), 0.3);
  const at::Tensor y = at::tensor({2.0, -3.0}, at::kDouble), g = at::tensor({0.5, 0.25}, at::kDouble);
  const Tensors h{at::scalar_tensor(0.1, at::kDouble), at::scalar_tensor(0.2, at::kDouble)};
  EXPECT_TRUE(at::allclose(SgdRule({.weight_decay = 0.3}).residual(y, g, h), at::tensor({0.9, -0.35}, at::kDouble)));
  EXPECT_TRUE(at::allclose(SgdRule({.learned = {"weight_decay"}}).residual(y, g, h), at::tensor({0.9, -0.35}, at::kDouble)));
  EXPECT_TRUE(SgdRule({}).residual(y, g, h).is_same(g));
}

TEST(SgdRule, RefusesOptionsThatMakeNoSense) {
  EXPECT_THROW(SgdRule({.lr = -1}), Error);
  EXPECT_THROW(SgdRule({.nesterov = true}), Error);
  EXPECT_THROW(SgdRule({.momentum = 0.9, .dampening = 0.1, .nesterov = true}), Error);
  EXPECT_THROW(SgdRule({.learned = {"speed"}}), Error);
  EXPECT_EQ((SgdRuleOptions{.lr = -1, .momentum = -2}).violations().size(), 2u);
}

}  // namespace
}  // namespace bilevel
