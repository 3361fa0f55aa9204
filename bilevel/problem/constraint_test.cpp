#include "bilevel/problem/constraint.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"

namespace bilevel {
namespace {

double total(const at::Tensor& v) { return v.sum().item<double>(); }

/// How far w is from the optimality conditions of min ½‖w − v‖² over w ≥ 0, Σ w = 1: with the multiplier θ of the sum,
/// v_i − w_i = θ where w_i > 0, and v_i ≤ θ where w_i = 0.
double violation(const at::Tensor& v, const at::Tensor& w) {
  const at::Tensor positive = w > 0;
  const at::Tensor slack = v - w;
  const at::Tensor theta = slack.masked_select(positive).mean();
  const double equal = (slack.masked_select(positive) - theta).abs().max().item<double>();
  const at::Tensor zeros = slack.masked_select(positive.logical_not());
  const double above = zeros.numel() == 0 ? 0 : std::max(0.0, (zeros - theta).max().item<double>());
  return std::max({equal, above, std::abs(total(w) - 1), std::max(0.0, -w.min().item<double>())});
}

TEST(Constraint, ProjectsOntoTheSimplexByTheOptimalityConditions) {
  bool some_zero = false, some_inside = false;
  for (int64_t t = 0; t < 60; ++t) {
    Draw draw = Stream(3, "simplex").at(t);
    const int64_t d = 1 + t % 12;
    const at::Tensor v = draw.normal({d}) * std::pow(10.0, static_cast<double>(t % 5) - 2) + static_cast<double>(t % 3) - 1;
    const at::Tensor w = Constraint::simplex().project(v);
    EXPECT_LT(violation(v, w), 1e-12 * std::max(1.0, v.abs().max().item<double>())) << t;
    // The check itself notices the neighbours: clipping and dividing by the sum, and the softmax.
    if (d > 2) {
      EXPECT_GT(violation(v, v.softmax(0)), 1e-6);
    }
    some_zero = some_zero || (w == 0).any().item<bool>();
    some_inside = some_inside || (d > 1 && (w > 0).all().item<bool>());
  }
  EXPECT_TRUE(some_zero && some_inside);
}

TEST(Constraint, TheSimplexProjectionIsNearestAmongPointsOfTheSimplex) {
  const at::Tensor v = Stream(5, "point").at(0).normal({6});
  const at::Tensor w = Constraint::simplex().project(v);
  Draw draw = Stream(5, "others").at(0);
  for (int i = 0; i < 200; ++i) {
    const at::Tensor z = -draw.uniform({6}).add(1e-12).log();
    const at::Tensor other = z / z.sum();
    EXPECT_LE(total((v - w) * (other - w)), 1e-12);  // the variational inequality of a projection
  }
}

TEST(Constraint, ProjectionsByHand) {
  const auto simplex = [](std::vector<double> v) { return Constraint::simplex().project(at::tensor(v, at::kDouble)); };
  EXPECT_TRUE(at::allclose(simplex({0.5, 0.8}), at::tensor({0.35, 0.65}, at::kDouble), 0, 1e-15));
  EXPECT_TRUE(at::allclose(simplex({2.0, 0.5, -1.0}), at::tensor({1.0, 0.0, 0.0}, at::kDouble), 0, 1e-15));
  EXPECT_TRUE(at::allclose(simplex({7.0, 7.0, 7.0, 7.0}), at::full({4}, 0.25, at::kDouble), 0, 1e-15));
  EXPECT_TRUE(at::allclose(simplex({-3.0}), at::ones({1}, at::kDouble), 0, 1e-15));
  const at::Tensor v = at::tensor({-2.0, 0.0, 0.5, 3.0}, at::kDouble);
  EXPECT_TRUE(at::equal(Constraint::box(-1, 1).project(v), at::tensor({-1.0, 0.0, 0.5, 1.0}, at::kDouble)));
  EXPECT_TRUE(at::equal(Constraint::positive().project(v), at::tensor({0.0, 0.0, 0.5, 3.0}, at::kDouble)));
  EXPECT_TRUE(at::equal(Constraint{}.project(v), v));
}

TEST(Constraint, ProjectingTwiceIsProjectingOnce) {
  const at::Tensor v = 3 * Stream(6, "point").at(0).normal({40});
  for (const auto& set : {Constraint::box(-0.5, 0.7), Constraint::positive(), Constraint::simplex()}) {
    const at::Tensor once = set.project(v);
    EXPECT_FALSE(at::equal(once, v));
    EXPECT_TRUE(at::allclose(set.project(once), once, 0, 1e-15));
  }
}

TEST(Constraint, LeavesAPointOfTheSimplexAsItIsHoweverSmallItsElements) {
  const at::Tensor v = at::tensor({0.1, 1e-30, 0.2, 0.7, 0.0}, at::kDouble);
  EXPECT_TRUE(at::equal(Constraint::simplex().project(v), v));
  const at::Tensor single = v.to(at::kFloat);
  EXPECT_TRUE(at::equal(Constraint::simplex().project(single), single));
  const at::Tensor outside = v + 1e-12;
  EXPECT_LT(std::abs(total(Constraint::simplex().project(outside)) - 1), 1e-15);
}

TEST(Constraint, TheSimplexProjectionDoesNotFeelAConstantAddedToThePart) {
  const at::Tensor v = Stream(7, "point").at(0).normal({10});
  const at::Tensor w = Constraint::simplex().project(v);
  EXPECT_TRUE(at::allclose(Constraint::simplex().project(v + 1e6), w, 0, 1e-9));
  const at::Tensor many = Stream(7, "many").at(0).normal({100000}, at::kFloat).mul(1e-6);
  const at::Tensor projected = Constraint::simplex().project(many);
  EXPECT_EQ(projected.scalar_type(), at::kFloat);
  EXPECT_NEAR(total(projected.to(at::kDouble)), 1, 1e-6);
}

TEST(Constraint, LeavesItsArgumentAloneAndRefusesWhatIsEmpty) {
  const at::Tensor v = at::tensor({-2.0, 5.0}, at::kDouble), before = v.clone();
  for (const auto& set : {Constraint{}, Constraint::box(0, 1), Constraint::simplex()}) set.project(v);
  EXPECT_TRUE(at::equal(v, before));
  EXPECT_THROW(Constraint::box(1, 0).project(v), Error);
  EXPECT_THROW(Constraint::simplex().project(at::zeros({0}, at::kDouble)), Error);
  EXPECT_TRUE(Constraint::simplex().project(at::tensor({1.0, std::nan("")}, at::kDouble)).isnan().all().item<bool>());
}

}  // namespace
}  // namespace bilevel
