#include "bilevel/algorithm/soba.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <functional>

#include "bilevel/algorithm/single_loop_for_tests.h"
#include "bilevel/core/error.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::soba_test {
namespace {

using test::distance;
using test::FiniteSum;

SingleLoopOptions full(double lr, double outer_lr) {
  return {.lr = lr, .outer_lr = outer_lr, .decay = 0, .batch = 0, .outer_batch = 0};
}

TEST(Soba, RestsAtTheSolutionOfTheBilevelProblemWithFullBatches) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  const Soba soba(oracle, full(0.2, 0.1));
  State state = soba.init();
  const double at_start = problem.hypergradient(state.tensor("x")).norm().item<double>();
  soba.step(state, 3000);
  const at::Tensor x = state.tensor("x"), y = problem.solution(x);
  EXPECT_LT(problem.hypergradient(x).norm().item<double>(), 1e-10 * at_start);
  EXPECT_LT(distance(state.tensor("y"), y), 1e-10);
  EXPECT_LT(distance(state.tensor("q"), problem.adjoint(y)), 1e-10);
  EXPECT_GT(state.tensor("q").norm().item<double>(), 0.1);
}

TEST(Soba, TakesTheStepOfThePaperFromTheOldPoint) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  const SingleLoopOptions options{.lr = 0.07, .outer_lr = 0.3, .decay = 0.5, .batch = 4, .outer_batch = 6, .seed = 3};
  const Soba soba(oracle, options);
  const Partition inner(FiniteSum::kInner, 4, Stream(3, "inner batches")),
      outer(FiniteSum::kOuter, 6, Stream(3, "outer batches"));
  for (const int64_t t : {0, 5, 11}) {
    State state = test::somewhere(soba);
    state.set("step", t);
    state.set("outer_scale", 0.25);
    state.set("damping", 0.4);
    const int64_t i = inner.number(t), j = outer.number(t);
    const test::Quantities d = test::quantities(oracle, state, inner.samples(i), outer.samples(j));
    // 22 = 6 batches of 3 and 4, so the weights are not 1.
    const double a = inner.weight(i), b = outer.weight(j), shrink = 1 / std::sqrt(static_cast<double>(t + 1));
    EXPECT_NE(a, 1);
    const at::Tensor x = state.tensor("x"), y = state.tensor("y"), q = state.tensor("q");
    const at::Tensor new_y = y - 0.07 * shrink * a * d.r, new_q = q - 0.07 * shrink * (a * d.Hq + 0.4 * q - b * d.f_y),
                     new_x = x - 0.25 * 0.3 * shrink * (b * d.f_x - a * d.cross);
    const Record record = soba.step(state, 1);
    EXPECT_LT(distance(state.tensor("y"), new_y), 1e-14);
    EXPECT_LT(distance(state.tensor("q"), new_q), 1e-14);
    EXPECT_LT(distance(state.tensor("x"), new_x), 1e-14);
    EXPECT_EQ(state.integer("step"), t + 1);
    EXPECT_EQ(record.step, t);
    EXPECT_NEAR(record.hypergradient_norm, (b * d.f_x - a * d.cross).norm().item<double>(), 1e-13);
    EXPECT_NEAR(record.stationarity, a * d.r.norm().item<double>(), 1e-13);
  }
}

TEST(Soba, GoesOnAverageWhereAllSamplesWouldTakeIt) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  SingleLoopOptions options{.lr = 0.1, .outer_lr = 0.1, .decay = 0, .batch = 4, .outer_batch = 4, .seed = 1};
  const Soba drawn(oracle, options), whole(oracle, full(0.1, 0.1));
  State expected = test::somewhere(whole);
  whole.step(expected, 1);
  // 6 inner and 4 outer batches: in 12 steps every one comes equally often.
  const State start = test::somewhere(drawn);
  for (const char* name : {"x", "y", "q"}) {
    at::Tensor mean = at::zeros_like(start.tensor(name));
    double spread = 0;
    for (int64_t t = 0; t < 12; ++t) {
      State state = start;
      state.set("step", t);
      drawn.step(state, 1);
      mean += state.tensor(name) / 12;
      spread = std::max(spread, distance(state.tensor(name), expected.tensor(name)));
    }
    EXPECT_LT(distance(mean, expected.tensor(name)), 1e-14) << name;
    EXPECT_GT(spread, 1e-3) << name;
  }
}

TEST(Soba, GoesOnFromASavedStateToTheSameBits) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  const Soba soba(oracle, {.decay = 0.5, .batch = 4, .outer_batch = 4, .seed = 1});
  State whole = soba.init(), parts = soba.init();
  soba.step(whole, 9);
  soba.step(parts, 4);
  const std::string path = (std::filesystem::temp_directory_path() / fmt::format("bilevel-soba-{}", getpid())).string();
  save_state(parts, path);
  State loaded = load_state(path);
  std::filesystem::remove(path);
  for (int i = 0; i < 5; ++i) soba.step(loaded, 1);
  for (const char* name : {"x", "y", "q"}) EXPECT_TRUE(at::equal(whole.tensor(name), loaded.tensor(name))) << name;
}

TEST(Soba, EvaluatesAllSamplesAndMovesNothing) {
  const FiniteSum problem;
  const AutodiffOracle first_order(problem);
  const CountedOracle oracle(first_order);
  const Soba soba(oracle, {.batch = 4, .outer_batch = 4});
  State state = test::somewhere(soba);
  const State before = state.clone();
  const Record record = soba.evaluate(state);
  EXPECT_NEAR(record.inner_loss, problem.inner_loss(state.tensor("x"), state.tensor("y"), {}).item<double>(), 1e-14);
  EXPECT_NEAR(record.outer_loss, problem.outer_loss(state.tensor("x"), state.tensor("y"), {}).item<double>(), 1e-14);
  for (const char* name : {"x", "y", "q"}) EXPECT_TRUE(at::equal(before.tensor(name), state.tensor(name)));
  EXPECT_EQ(record.cost.gradients, 2);
  EXPECT_EQ(record.cost.hvps, 1);
  EXPECT_EQ(record.cost.cross_products, 1);
  // A step asks for the same three things, of a batch each, whatever the number of steps.
  EXPECT_EQ(soba.step(state, 7).cost.oracle_calls(), 7 * record.cost.oracle_calls());
}

TEST(Soba, StepsSafelyByItselfAndSaysWhereAStepIsTooLong) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  const Soba safe(oracle, {.outer_lr = 0.05, .batch = 0, .outer_batch = 0});
  State state = safe.init();
  EXPECT_GT(state.number("lr"), 0.01);
  EXPECT_EQ(safe.step(state, 400).status, Status::kIterationLimit);
  EXPECT_LT(problem.hypergradient(state.tensor("x")).norm().item<double>(), 0.05);
  const Soba wild(oracle, full(1e3, 0.1));
  State lost = wild.init();
  const Record record = wild.step(lost, 400);
  EXPECT_EQ(record.status, Status::kNonFinite);
  EXPECT_EQ(record.grade, Grade::kBad);
}

TEST(Soba, KeepsXInsideItsConstraints) {
  struct Boxed final : TestProblem {
    Boxed() {
      outer_layout_.add("x", {2});
      inner_layout_.add("y", {2});
      x0_ = at::zeros({2}, at::kDouble);
      y0_ = at::zeros({2}, at::kDouble);
    }
    at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
      return 0.5 * (y - x).square().sum();
    }
    at::Tensor outer_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const override {
      return 0.5 * (y - at::tensor({2.0, 0.3}, at::kDouble)).square().sum();
    }
    std::vector<Constraint> outer_constraints() const override { return {Constraint::box(-1.0, 1.0)}; }
  };
  const Boxed problem;
  const AutodiffOracle oracle(problem);
  const Soba soba(oracle, full(0.5, 0.2));
  State state = soba.init();
  soba.step(state, 300);
  EXPECT_LT(distance(state.tensor("x"), at::tensor({1.0, 0.3}, at::kDouble)), 1e-9);
}

TEST(Soba, RefusesWhatItCannotDifferentiate) {
  const auto message = [](const std::function<void()>& misuse) {
    try {
      misuse();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  const SinusoidMamlProblem maml;
  const AutodiffOracle of_maml(maml);
  EXPECT_THAT(message([&] { Soba{of_maml}; }), testing::HasSubstr("4 inner problems"));
  const QuadraticProblem quadratic;
  const LearnedRuleProblem learned(quadratic, 0.1);
  const AutodiffOracle of_learned(learned);
  EXPECT_THAT(message([&] { Soba{of_learned}; }), testing::HasSubstr("update rule"));
  const AutodiffOracle oracle(quadratic);
  EXPECT_THAT(message([&] { Soba(oracle, {.lr = -1.0}); }), testing::HasSubstr("lr = -1"));
  EXPECT_THAT(message([&] { Soba(oracle, {.decay = 1.0}); }), testing::HasSubstr("decay = 1"));
}

}  // namespace
}  // namespace bilevel::soba_test
