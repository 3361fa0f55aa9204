#include "bilevel/outer/exponentiated_gradient.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/outer/registry.h"

namespace bilevel::exponentiated_gradient_test {
namespace {

using ::testing::HasSubstr;

at::Tensor numbers(std::vector<double> values) { return at::tensor(values, at::kDouble); }
at::Tensor distribution(int64_t n, int64_t t) {
  const at::Tensor raw = Stream(2, "distribution").at(t).uniform({n}).to(at::kDouble) + 0.01;
  return raw / raw.sum();
}
at::Tensor derivative(int64_t n, int64_t t) { return Stream(2, "derivative").at(t).normal({n}).to(at::kDouble); }
at::Tensor stepped(ExponentiatedGradientOptions options, const at::Tensor& x, const at::Tensor& d) {
  State state;
  return ExponentiatedGradient(std::move(options)).step(state, x, d);
}
double largest(const at::Tensor& t) { return t.abs().max().item<double>(); }

std::unique_ptr<OuterOptimizer> made(const std::string& text) {
  Section section = Config::parse(text, "c.toml").root();
  auto optimizer = make_outer_optimizer("exponentiated-gradient", section);
  section.finish();
  return optimizer;
}

/// The objective of the mirror step, ⟨d, z⟩ + KL(z, x)/lr.
at::Tensor objective(const at::Tensor& z, const at::Tensor& x, const at::Tensor& d, double lr) {
  return d.dot(z) + (z * (z / x).log()).sum() / lr;
}
/// Its gradient along the simplex, which is zero at the minimum and nowhere else: the objective is strictly convex.
double slope(const at::Tensor& z, const at::Tensor& x, const at::Tensor& d, double lr) {
  const at::Tensor leaf = z.detach().clone().set_requires_grad(true);
  objective(leaf, x, d, lr).backward();
  return largest(leaf.grad() - leaf.grad().mean());
}

TEST(ExponentiatedGradient, MinimisesItsObjectiveOnTheSimplex) {
  for (const double lr : {0.05, 0.7, 3.0}) {
    const at::Tensor x = distribution(6, 0), d = derivative(6, 0);
    const at::Tensor z = stepped({.lr = lr}, x, d);
    EXPECT_NEAR(z.sum().item<double>(), 1, 1e-15);
    EXPECT_LT(slope(z, x, d, lr), 1e-12);
    for (int64_t t = 1; t < 50; ++t)
      EXPECT_LT(objective(z, x, d, lr).item<double>(), objective(distribution(6, t), x, d, lr).item<double>());
    // Its neighbours do not: no step, and the factors without the sum's correction projected, which is another step.
    EXPECT_GT(slope(x, x, d, lr), 0.1);
    const at::Tensor raw = x * (-lr * d).exp();
    EXPECT_GT(slope((raw + (1 - raw.sum()) / 6).clamp_min(1e-9), x, d, lr), 1e-3);
    // Nor does a gradient step, nearest point of the simplex (all of its elements stay positive at the smallest lr).
    if (lr == 0.05) {
      const at::Tensor euclidean = x - lr * (d - d.mean());
      ASSERT_GT(euclidean.min().item<double>(), 0);
      EXPECT_GT(slope(euclidean, x, d, lr), 0.1);
    }
  }
}

TEST(ExponentiatedGradient, MultipliesByHand) {
  const at::Tensor z = stepped({.lr = 2.0}, numbers({0.25, 0.75}), numbers({std::log(2.0) / 2, 0}));
  EXPECT_LT(largest(z - numbers({0.125 / 0.875, 0.75 / 0.875})), 1e-15);
}

TEST(ExponentiatedGradient, DoesNotFeelAConstantInTheHypergradientHoweverLarge) {
  const at::Tensor x = distribution(7, 1), d = derivative(7, 1), z = stepped({.lr = 0.5}, x, d);
  EXPECT_LT(largest(stepped({.lr = 0.5}, x, d + 3) - z), 1e-15);
  EXPECT_LT(largest(stepped({.lr = 0.5}, x, d - 1e5) - z), 1e-10);  // exp(5e4) would be infinite
  EXPECT_GT(largest(z - x), 1e-2);
}

TEST(ExponentiatedGradient, StaysOnTheSimplexToTheLastDigit) {
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    at::Tensor x = distribution(5, 2).to(dtype);
    const double eps = dtype == at::kFloat ? std::numeric_limits<float>::epsilon() : std::numeric_limits<double>::epsilon();
    State state;
    const ExponentiatedGradient rule({.lr = 0.3});
    for (int64_t t = 0; t < 2000; ++t) {
      x = rule.step(state, x, derivative(5, t).to(dtype));
      ASSERT_GE(x.min().item<double>(), 0);
      ASSERT_NEAR(x.sum(at::kDouble).item<double>(), 1, 2 * eps) << t;
    }
    EXPECT_EQ(x.scalar_type(), dtype);
  }
}

TEST(ExponentiatedGradient, LeavesAZeroAtZero) {
  const at::Tensor z = stepped({}, numbers({0, 0.5, 0.5}), numbers({-5, 1, 2}));
  EXPECT_EQ(z[0].item<double>(), 0);
  EXPECT_GT(z[1].item<double>(), 0.5);
}

TEST(ExponentiatedGradient, TakesEachPartAsASimplexOfItsOwn) {
  const at::Tensor a = distribution(2, 3), b = distribution(4, 4), d = derivative(6, 3);
  const at::Tensor both = stepped({.lr = 0.4, .parts = {2, 4}}, at::cat({a, b}), d);
  EXPECT_TRUE(at::equal(both, at::cat({stepped({.lr = 0.4}, a, d.narrow(0, 0, 2)), stepped({.lr = 0.4}, b, d.narrow(0, 2, 4))})));
}

TEST(ExponentiatedGradient, GoesAlongTheMeanOfAWindow) {  // SOBBO
  const auto smoothed = made("lr = 0.5\nsmoothing = 3\nsmoothing_decay = 0.5");
  State state;
  at::Tensor x = distribution(4, 5), expected = x, last = x;
  for (int64_t t = 0; t < 6; ++t) {
    at::Tensor sum = at::zeros({4}, at::kDouble);
    double weights = 0;
    for (int64_t i = 0; i < std::min<int64_t>(3, t + 1); ++i) {
      sum += std::pow(0.5, i) * derivative(4, t - i);
      weights += std::pow(0.5, i);
    }
    last = stepped({.lr = 0.5}, expected, derivative(4, t));
    expected = stepped({.lr = 0.5}, expected, sum / weights);
    x = smoothed->step(state, x, derivative(4, t));
    EXPECT_LT(largest(x - expected), 1e-14) << t;
  }
  EXPECT_GT(largest(x - last), 1e-2);
}

TEST(ExponentiatedGradient, TakesOuterScaleAsAFactorOfItsStep) {
  const at::Tensor x = distribution(4, 6), d = derivative(4, 6);
  State state;
  state.set("outer_scale", 0.25);
  EXPECT_LT(largest(ExponentiatedGradient({.lr = 0.8}).step(state, x, d) - stepped({.lr = 0.2}, x, d)), 1e-15);
}

TEST(ExponentiatedGradient, IsReadFromAConfigurationAndRefusesWhatIsNoDistribution) {
  State state;
  const at::Tensor d = numbers({1, 2, 3, 4});
  EXPECT_TRUE(at::equal(made("lr = 0.2\nparts = [1, 3]")->step(state, numbers({1, 0.2, 0.3, 0.5}), d),
                        stepped({.lr = 0.2, .parts = {1, 3}}, numbers({1, 0.2, 0.3, 0.5}), d)));
  EXPECT_THROW(made("lr = -0.1"), Error);
  EXPECT_THROW(made("parts = [2, 0]"), Error);
  const auto refused = [&](ExponentiatedGradientOptions options, const at::Tensor& x, const char* why) {
    EXPECT_THAT([&] { stepped(options, x, d.narrow(0, 0, x.size(0))); }, ::testing::ThrowsMessage<Error>(HasSubstr(why))) << x;
  };
  refused({}, numbers({-0.1, 0.6, 0.5}), "least element of -0.1");
  refused({}, numbers({0.1, 0.6, 0.5}), "sum 1.2");
  refused({}, numbers({std::nan(""), 0.5, 0.5}), "the sum nan");
  refused({}, numbers({0.5, 0.5, 0.5, 0.5}), "give `parts`");
  refused({.parts = {2, 1}}, numbers({0.2, 0.3, 0.2, 0.3}), "expected the 4 of x");
  EXPECT_THROW(stepped({}, numbers({0.5, 0.5}), d), Error);
}

}  // namespace
}  // namespace bilevel::exponentiated_gradient_test
