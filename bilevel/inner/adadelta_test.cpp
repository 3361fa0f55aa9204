#include "bilevel/inner/adadelta.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/rules_for_tests.h"

// The steps themselves are compared with torch.optim in torch_optim_test.cpp.

namespace bilevel {
namespace {

using namespace test;

TEST(AdadeltaRule, DerivativesAgreeWithDifferencesForEveryInput) {
  const AdadeltaRule rule({.lr = 0.7, .rho = 0.8, .eps = 1e-3, .weight_decay = 0.3});
  for (const int64_t step : {0, 3}) {
    for (const bool elementwise : {false, true}) check_derivatives(rule, step, elementwise);
  }
}

TEST(AdadeltaRule, IsSmoothAtAFreshState) {
  // With a = v = 0 and G = 0: ∂y'/∂G = −η √ε/√ε = −η.
  const AdadeltaRule rule({.lr = 1.0, .eps = 1e-4});
  const RuleInput in = random_input(rule, 0, false, 2);
  expect_finite_derivatives_at_rest(rule, -in.h[0].item<double>());
}

TEST(AdadeltaRule, RefusesOptionsThatMakeNoSense) {
  EXPECT_THROW(AdadeltaRule({.eps = 0.0}), Error);
  EXPECT_THROW(AdadeltaRule({.rho = 1.5}), Error);
}

}  // namespace
}  // namespace bilevel
