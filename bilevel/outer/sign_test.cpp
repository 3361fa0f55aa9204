#include "bilevel/outer/sign.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/outer/registry.h"
#include "bilevel/outer/trajectory_for_tests.h"

namespace bilevel::sign_test {
namespace {

using ::testing::HasSubstr;

at::Tensor numbers(std::vector<double> values) { return at::tensor(values, at::kDouble); }
void expect_equal(const at::Tensor& a, std::vector<double> values) {
  EXPECT_LT((a - numbers(std::move(values))).abs().max().item<double>(), 1e-15) << a;
}

TEST(OuterSign, GoesAlongSignsAloneWithTheStepOfEachCoordinate) {
  const OuterSign rule({.lr = {0.1, 0.2, 0.3}});
  State state;
  expect_equal(rule.step(state, numbers({1, 1, 1}), numbers({5e6, -3e-9, 0})), {0.9, 1.2, 1});
}

TEST(OuterSign, ShrinksTheStepOfACoordinateWhoseSignFlipsAndOfNoOther) {
  const OuterSign rule({.lr = {0.4}, .shrink = 0.5});
  State state;
  at::Tensor x = rule.step(state, numbers({0, 0}), numbers({1, 1}));
  expect_equal(x = rule.step(state, x, numbers({-1, 1})), {-0.4 + 0.2, -0.8});
  expect_equal(x = rule.step(state, x, numbers({1, 1})), {-0.2 - 0.1, -1.2});
  expect_equal(x = rule.step(state, x, numbers({1, 1})), {-0.3 - 0.1, -1.6});  // no flip: the step stays
}

TEST(OuterSign, ADerivativeThatIsZeroOrNoNumberMovesNothingAndFlipsNothing) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  const OuterSign rule({.lr = {0.1}});
  State state;
  at::Tensor x = rule.step(state, numbers({0, 0, 0}), numbers({1, 1, -inf}));
  expect_equal(x = rule.step(state, x, numbers({nan, 0, -1})), {-0.1, -0.1, 0.2});
  expect_equal(rule.step(state, x, numbers({-1, 1, -1})), {0.0, -0.2, 0.3});
}

TEST(OuterSign, ComesWithinItsLastStepOfAMinimum) {
  const OuterSign rule({.lr = {0.7}});
  State state;
  at::Tensor x = numbers({3.0});
  for (int k = 0; k < 60; ++k) x = rule.step(state, x, 2 * (x - 1.234));
  EXPECT_NEAR(x.item<double>(), 1.234, 1e-4);
}

TEST(OuterSign, IsReadFromAConfigurationAndRefusesWhatDoesNotFit) {
  const auto make = [](const std::string& toml) {
    Section section = Config::parse(toml, "c.toml").root();
    return make_outer_optimizer("sign", section);
  };
  State state;
  expect_equal(make("lr = 0.5")->step(state, numbers({0, 0}), numbers({1, -1})), {-0.5, 0.5});
  State other;
  expect_equal(make("lr = [0.5, 0.25]")->step(other, numbers({0, 0}), numbers({1, -1})), {-0.5, 0.25});
  EXPECT_THROW(make("lr = [0.5, -0.25]"), Error);
  EXPECT_THROW(make("shrink = 0.0"), Error);
  State third;
  EXPECT_THAT(
      [&] {
        make("lr = [0.5, 0.25]")->step(third, numbers({0, 0, 0}), numbers({1, 1, 1}));
      },
      ::testing::ThrowsMessage<Error>(HasSubstr("one for each of the 3 elements")));
}

}  // namespace
}  // namespace bilevel::sign_test
