#include <cmath>

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/core/guards.h"
#include "bilevel/core/layout.h"
#include "bilevel/core/standard_error.h"
#include "bilevel/core/stream.h"

namespace bilevel {
namespace {

TEST(Layout, SplitsIntoViewsAndJoinsBack) {
  Layout layout;
  layout.add("weight", {2, 3}).add("bias", {2}).add("scale", {});
  ASSERT_EQ(layout.size(), 9);
  const at::Tensor flat = at::arange(9, at::kDouble);
  const auto parts = layout.split(flat);
  EXPECT_EQ(parts[1][1].item<double>(), 7);
  EXPECT_TRUE(at::equal(layout.join(parts), flat));
  parts[0].add_(1);
  EXPECT_EQ(flat[0].item<double>(), 1);
  EXPECT_EQ(layout.element_name(4), "weight[1,1]");
  EXPECT_EQ(layout.element_name(8), "scale");
  EXPECT_THROW(layout.add("bias", {1}), Error);
  EXPECT_THROW(layout.split(at::zeros({8})), Error);
}

TEST(Stream, IsAFunctionOfSeedPurposeAndTime) {
  const at::Tensor a = Stream(1, "batch").at(7).uniform({100});
  EXPECT_TRUE(at::equal(a, Stream(1, "batch").at(7).uniform({100})));
  EXPECT_FALSE(at::equal(a, Stream(2, "batch").at(7).uniform({100})));
  EXPECT_FALSE(at::equal(a, Stream(1, "noise").at(7).uniform({100})));
  EXPECT_FALSE(at::equal(a, Stream(1, "batch").at(8).uniform({100})));
}

TEST(Stream, DrawsInOrderDoNotRepeat) {
  Draw draw = Stream(1, "batch").at(0);
  const at::Tensor a = draw.uniform({101});
  const at::Tensor b = draw.uniform({101});
  const at::Tensor all = std::get<0>(at::_unique(at::cat({a, b})));
  EXPECT_EQ(all.size(0), 202);
}

TEST(Stream, HasTheMomentsOfItsDistributions) {
  Draw draw = Stream(3, "moments").at(0);
  constexpr int64_t kN = 200000;
  const at::Tensor u = draw.uniform({kN});
  const at::Tensor z = draw.normal({kN});
  const double three_sigma = 3.0 / std::sqrt(static_cast<double>(kN));
  EXPECT_NEAR(u.mean().item<double>(), 0.5, three_sigma * std::sqrt(1.0 / 12.0));
  EXPECT_NEAR(z.mean().item<double>(), 0.0, three_sigma);
  EXPECT_NEAR(z.pow(2).mean().item<double>(), 1.0, three_sigma * std::sqrt(2.0));
  EXPECT_NEAR(z.pow(4).mean().item<double>(), 3.0, three_sigma * std::sqrt(96.0));
}

TEST(Stream, PermutationsHoldEachNumberOnce) {
  const at::Tensor order = Stream(5, "order").at(2).permutation(1000);
  EXPECT_TRUE(at::equal(std::get<0>(order.sort()), at::arange(1000)));
  EXPECT_FALSE(at::equal(order, at::arange(1000)));
}

TEST(SeedGuard, GivesTheGeneratorItsStateBack) {
  at::manual_seed(1);
  const at::Tensor expected = at::randn({8});
  at::manual_seed(1);
  at::Tensor inside;
  try {
    const SeedGuard guard(42);
    inside = at::randn({8});
    throw std::runtime_error("user code");
  } catch (const std::runtime_error&) {
  }
  EXPECT_TRUE(at::equal(at::randn({8}), expected));
  EXPECT_FALSE(at::equal(inside, expected));
}

TEST(StandardError, IsThatOfTheMean) {
  EXPECT_NEAR(standard_error({1, 2, 3, 6}, 3), std::sqrt(14.0 / 12.0), 1e-15);
  EXPECT_EQ(standard_error({2}, 2), 0);
}

TEST(Suggestion, FindsTheNearestName) {
  EXPECT_EQ(nearest("stesp", {"start", "steps"}), "steps");
  EXPECT_EQ(nearest("quaternion", {"start", "steps"}), "");
}

}  // namespace
}  // namespace bilevel
