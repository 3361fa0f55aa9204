#include "bilevel/inner/adagrad.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/rules_for_tests.h"

// The steps themselves are compared with torch.optim in torch_optim_test.cpp.

namespace bilevel {
namespace {

using namespace test;

TEST(AdagradRule, DerivativesAgreeWithDifferencesForEveryInput) {
  const AdagradRule rule({.lr = 0.1, .lr_decay = 0.2, .weight_decay = 0.3, .eps = 1e-3});
  for (const int64_t step : {0, 3}) {
    for (const bool elementwise : {false, true}) check_derivatives(rule, step, elementwise);
  }
}

TEST(AdagradRule, BeginsWithTheAccumulatorThatIsAskedFor) {
  const at::Tensor y = at::ones({3}, at::kFloat);
  EXPECT_TRUE(at::equal(AdagradRule({.initial_accumulator_value = 0.5}).fresh_state(y)[0], at::full({3}, 0.5, at::kFloat)));
  EXPECT_TRUE(at::equal(AdagradRule({}).fresh_state(y)[0], at::zeros({3}, at::kFloat)));
}

TEST(AdagradRule, HasFiniteDerivativesWhereNoGradientHasBeenSeen) {
  expect_finite_derivatives_at_rest(AdagradRule({.lr = 0.1}));
  // With an accumulator to begin with, a first gradient moves y at the rate −η/√v.
  const AdagradRule rule({.lr = 0.1, .initial_accumulator_value = 4.0, .eps = 0.0});
  expect_finite_derivatives_at_rest(rule, -random_input(rule, 0, false, 2).h[0].item<double>() / 2);
}

TEST(AdagradRule, RefusesOptionsThatMakeNoSense) {
  EXPECT_THROW(AdagradRule({.initial_accumulator_value = -1}), Error);
  EXPECT_THROW(AdagradRule({.learned = {"momentum"}}), Error);
}

}  // namespace
}  // namespace bilevel
