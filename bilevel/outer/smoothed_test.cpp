#include "bilevel/outer/smoothed.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <vector>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/outer/adam.h"
#include "bilevel/outer/registry.h"
#include "bilevel/outer/sgd.h"
#include "bilevel/outer/trajectory_for_tests.h"

namespace bilevel::smoothed_test {
namespace {

using namespace test;

std::unique_ptr<OuterOptimizer> made(const std::string& name, const std::string& text) {
  Section section = Config::parse(text, "test.toml").root();
  auto optimizer = make_outer_optimizer(name, section);
  section.finish();
  return optimizer;
}

at::Tensor noise(int64_t t) { return Stream(1, "smoothed").at(t).normal({4}).to(at::kFloat); }

// In float, whose running sum would have drifted after ten windows.
TEST(Smoothed, IsTheOptimiserAlongTheMeanOfTheLastHypergradients) {
  for (const int64_t window : {2, 7, 50}) {
    const Smoothed smoothed(std::make_unique<OuterAdam>(OuterAdamOptions{}), window);
    const OuterAdam plain({});
    State state, expected_state;
    at::Tensor x = at::ones({4}, at::kFloat), expected = x;
    std::deque<at::Tensor> last;
    for (int64_t t = 0; t < 10 * window + 3; ++t) {
      last.push_back(noise(t));
      if (static_cast<int64_t>(last.size()) > window) last.pop_front();
      at::Tensor mean = at::zeros({4}, at::kDouble);
      for (const at::Tensor& one : last) mean += one / static_cast<double>(last.size());
      x = smoothed.step(state, x, noise(t));
      expected = plain.step(expected_state, expected, mean.to(at::kFloat));
    }
    EXPECT_LT((x - expected).abs().max().item<double>(), 1e-4) << window;
    State alone;
    at::Tensor other = at::ones({4}, at::kFloat);
    for (int64_t t = 0; t < 10 * window + 3; ++t) other = plain.step(alone, other, noise(t));
    EXPECT_GT((x - other).abs().max().item<double>(), 1e-2) << window;
  }
}

// A mean of hypergradients, and neither of the x's nor of steps: with a constant step size they differ from the second step on.
TEST(Smoothed, AveragesWhatWasFoundAtEarlierXs) {
  const Smoothed smoothed(std::make_unique<OuterSgd>(OuterSgdOptions{.lr = 0.1}), 2);
  State state;
  at::Tensor x = at::full({1}, 1.0, at::kDouble);
  x = smoothed.step(state, x, 2 * x);  // 1 − 0.1 · 2
  EXPECT_NEAR(x.item<double>(), 0.8, 1e-15);
  x = smoothed.step(state, x, 2 * x);  // 0.8 − 0.1 (2 + 1.6)/2
  EXPECT_NEAR(x.item<double>(), 0.62, 1e-15);
  x = smoothed.step(state, x, 2 * x);  // 0.62 − 0.1 (1.6 + 1.24)/2
  EXPECT_NEAR(x.item<double>(), 0.478, 1e-15);
}

// SOBOW's weights, after the ring has gone round more than once.
TEST(Smoothed, LetsWeightsFallWithAge) {
  const auto smoothed = made("sgd", "lr = 1.0\nsmoothing = 3\nsmoothing_decay = 0.5");
  State state;
  std::vector<double> seen;
  for (int64_t t = 0; t < 8; ++t) {
    seen.push_back(noise(t)[0].item<double>());
    double sum = 0, weights = 0;
    for (size_t i = 0; i < std::min<size_t>(3, seen.size()); ++i) {
      const double weight = std::pow(0.5, static_cast<double>(i));
      sum += weight * seen[seen.size() - 1 - i];
      weights += weight;
    }
    const at::Tensor moved = smoothed->step(state, at::zeros({1}, at::kDouble), noise(t).narrow(0, 0, 1).to(at::kDouble));
    EXPECT_NEAR(moved.item<double>(), -sum / weights, 1e-12) << t;
  }
  EXPECT_THROW(made("sgd", "smoothing = 3\nsmoothing_decay = 0.0"), Error);
  EXPECT_THROW(made("sgd", "smoothing = 3\nsmoothing_decay = 1.5"), Error);
}

TEST(Smoothed, IsTheOptimiserBitForBitWithAWindowOfOne) {
  for (const std::string name : {"sgd", "momentum", "adam", "sign", "bfgs"}) {
    State plain, smoothed, wide;
    const at::Tensor x = run(*made(name, ""), plain, start(), 6);
    EXPECT_TRUE(at::equal(run(*made(name, "smoothing = 1"), smoothed, start(), 6), x)) << name;
    EXPECT_EQ(plain.values().size(), smoothed.values().size());
    if (name == "sign") continue;  // the mean has the sign of the last here
    EXPECT_FALSE(at::equal(run(*made(name, "smoothing = 3"), wide, start(), 6), x)) << name;
  }
}

TEST(Smoothed, RefusesAnEmptyWindowAndShapesThatDoNotFit) {
  EXPECT_THROW(made("adam", "smoothing = 0"), Error);
  EXPECT_THROW(Smoothed(nullptr, 2), Error);
  State state;
  const at::Tensor x = start();
  EXPECT_THROW(made("adam", "smoothing = 4")->step(state, x, x.narrow(0, 0, 1)), Error);
}

}  // namespace
}  // namespace bilevel::smoothed_test
