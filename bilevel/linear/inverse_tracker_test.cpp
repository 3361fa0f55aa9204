#include "bilevel/linear/inverse_tracker.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"

namespace bilevel::inverse_tracker_test {
namespace {

constexpr int64_t kRows = 3;

at::Tensor block(int64_t t, int64_t d) {
  // Columns of very different sizes, correlated.
  static std::map<int64_t, at::Tensor> mixings;
  at::Tensor& mixing = mixings[d];
  if (!mixing.defined()) {
    mixing = (at::eye(d, at::kDouble) + 0.4 * Stream(0, "mixing").at(0).normal({d, d})) /
             (1 + at::arange(d, at::kDouble)).unsqueeze(1);
  }
  return Stream(0, "blocks").at(t).normal({kRows, d}).mm(mixing);
}

at::Tensor ridge_of(int64_t d) { return 0.02 + 0.01 * at::arange(d, at::kDouble); }
at::Tensor rhs(int64_t d) { return Stream(0, "rhs").at(0).normal({d}); }
double distance(const at::Tensor& a, const at::Tensor& b) { return ((a - b).norm() / b.norm()).item<double>(); }

TEST(WindowedInverse, IsTheInverseOfTheMeanOverItsWindowOnEitherSideOfTheDimension) {
  for (const int64_t d : {7, 40}) {  // 15 rows: fewer and more than d
    WindowedInverse tracker(15, kRows);
    at::Tensor expected, of_all = at::zeros({d, d}, at::kDouble);
    for (int64_t t = 0; t < 30; ++t) {
      ASSERT_TRUE(tracker.add({block(t, d)}, ridge_of(d)));
      of_all += block(t, d).t().mm(block(t, d)) / 30;
      at::Tensor F = at::zeros({d, d}, at::kDouble);
      const int64_t first = std::max<int64_t>(0, t - 4);
      for (int64_t i = first; i <= t; ++i) F += block(i, d).t().mm(block(i, d)) / static_cast<double>(t - first + 1);
      expected = at::linalg_solve(F + at::diag(ridge_of(d)), rhs(d));
      EXPECT_LT(distance(tracker.solve(rhs(d), ridge_of(d)), expected), 1e-10) << t;
    }
    EXPECT_GT(distance(at::linalg_solve(of_all + at::diag(ridge_of(d)), rhs(d)), expected), 0.05) << "the window does not matter";
    EXPECT_GT(distance(rhs(d) / ridge_of(d), expected), 0.05) << "the ridge alone would pass";
  }
}

TEST(WindowedInverse, KeepsTheLastBlockWholeWhereItIsLargerThanTheWindow) {
  WindowedInverse tracker(2, kRows);
  tracker.add({block(0, 9), block(1, 9)}, ridge_of(9));
  EXPECT_TRUE(at::equal(tracker.state().front(), block(1, 9)));
}

// A as the recursion has it, the ridge coming in along three coordinates at a time.
at::Tensor smoothed_matrix(double beta, int64_t d, int64_t first_blocks, int64_t updates) {
  at::Tensor A = at::diag(ridge_of(d));
  for (int64_t t = 0; t < first_blocks; ++t) A += block(t, d).t().mm(block(t, d)) / static_cast<double>(first_blocks);
  for (int64_t k = 0; k < updates; ++k) {
    A = beta * A + (1 - beta) * block(first_blocks + k, d).t().mm(block(first_blocks + k, d));
    for (int64_t i = 0; i < kRows; ++i) {
      const int64_t j = (k * kRows + i) % d;
      A[j][j] += (1 - beta) * ridge_of(d)[j] * static_cast<double>(d) / kRows;
    }
  }
  return A;
}

TEST(SmoothedInverse, IsTheDenseInverseAfterThousandsOfUpdates) {
  const int64_t d = 10;
  for (const double beta : {0.9, 0.99}) {
    SmoothedInverse tracker(beta);
    ASSERT_TRUE(tracker.add({block(0, d), block(1, d), block(2, d), block(3, d)}, ridge_of(d)));
    EXPECT_LT(distance(tracker.solve(rhs(d), ridge_of(d)), at::linalg_solve(smoothed_matrix(beta, d, 4, 0), rhs(d))), 1e-11);
    for (int64_t k = 0; k < 1000; ++k) ASSERT_TRUE(tracker.add({block(4 + k, d)}, ridge_of(d)));
    const at::Tensor expected = at::linalg_solve(smoothed_matrix(beta, d, 4, 1000), rhs(d));
    EXPECT_LT(distance(tracker.solve(rhs(d), ridge_of(d)), expected), 1e-9);
    const at::Tensor P = tracker.state().front();
    EXPECT_TRUE(at::equal(P, P.t()));
    EXPECT_GT(distance(at::linalg_solve(smoothed_matrix(beta, d, 4, 990), rhs(d)), expected), 1e-3)
        << "the updates do not matter";
  }
}

TEST(SmoothedInverse, TakesSeveralBlocksAtOnceAsOneAfterTheOther) {
  const int64_t d = 11;
  SmoothedInverse at_once(0.9), one_by_one(0.9);
  for (SmoothedInverse* one : {&at_once, &one_by_one}) one->add({block(0, d)}, ridge_of(d));
  for (int64_t round = 0; round < 6; ++round) {
    std::vector<at::Tensor> blocks;
    for (int64_t t = 0; t < 5; ++t) blocks.push_back(block(1 + 5 * round + t, d));
    at_once.add(blocks, ridge_of(d));
    for (const at::Tensor& S : blocks) one_by_one.add({S}, ridge_of(d));
  }
  EXPECT_LT(distance(at_once.solve(rhs(d), ridge_of(d)), one_by_one.solve(rhs(d), ridge_of(d))), 1e-11);
}

TEST(SmoothedInverse, DoesNotForgetTheRidgeWhereTheScoresHaveNothingToSay) {
  const int64_t d = 12;
  SmoothedInverse tracker(0.999);
  const at::Tensor nothing = at::zeros({kRows, d}, at::kDouble);
  for (int64_t k = 0; k < 5000; ++k) ASSERT_TRUE(tracker.add({nothing}, ridge_of(d)));  // 0.999^5000 = 0.007
  EXPECT_LT(distance(tracker.solve(rhs(d), ridge_of(d)), rhs(d) / ridge_of(d)), 0.003);
}

TEST(SmoothedInverse, TendsToTheInverseOfTheMeanOfAllBlocksAsBetaGoesToOne) {
  const int64_t d = 6, n = 4;  // the same four blocks again and again
  at::Tensor F = at::diag(ridge_of(d));
  for (int64_t t = 0; t < n; ++t) F += block(t, d).t().mm(block(t, d)) / n;
  const at::Tensor expected = at::linalg_solve(F, rhs(d));
  double last = 1;
  for (const double beta : {0.99, 0.998}) {
    SmoothedInverse tracker(beta);
    tracker.add({at::eye(d, at::kDouble).narrow(0, 0, kRows)}, ridge_of(d));
    for (int64_t k = 0; k < 7000; ++k) tracker.add({block(k % n, d)}, ridge_of(d));
    const double error = distance(tracker.solve(rhs(d), ridge_of(d)), expected);
    EXPECT_LT(error, last / 4) << beta;
    last = error;
  }
  EXPECT_LT(last, 0.01);
}

TEST(InverseTracker, AnswersByTheInverseSquareOfTheScoresScale) {
  const int64_t d = 8;
  const double c = 7.0;
  WindowedInverse window(9, kRows), large_window(9, kRows);
  SmoothedInverse dense(0.9), large_dense(0.9);
  for (int64_t t = 0; t < 20; ++t) {
    for (InverseTracker* one : {static_cast<InverseTracker*>(&window), static_cast<InverseTracker*>(&dense)}) {
      one->add({block(t, d)}, ridge_of(d));
    }
    for (InverseTracker* one : {static_cast<InverseTracker*>(&large_window), static_cast<InverseTracker*>(&large_dense)}) {
      one->add({c * block(t, d)}, c * c * ridge_of(d));
    }
  }
  EXPECT_LT(distance(c * c * large_window.solve(rhs(d), c * c * ridge_of(d)), window.solve(rhs(d), ridge_of(d))), 1e-12);
  EXPECT_LT(distance(c * c * large_dense.solve(rhs(d), c * c * ridge_of(d)), dense.solve(rhs(d), ridge_of(d))), 1e-11);
  EXPECT_GT(distance(window.solve(rhs(d), ridge_of(d)), dense.solve(rhs(d), ridge_of(d))), 0.01) << "the two forms are one";
}

TEST(InverseTracker, GoesOnFromItsStateWithTheSameBits) {
  const int64_t d = 8;
  WindowedInverse window(9, kRows);
  SmoothedInverse dense(0.9);
  for (int64_t t = 0; t < 5; ++t) window.add({block(t, d)}, ridge_of(d)), dense.add({block(t, d)}, ridge_of(d));
  WindowedInverse resumed_window(9, kRows, window.state());
  SmoothedInverse resumed_dense(0.9, dense.state());
  for (int64_t t = 5; t < 9; ++t) {
    window.add({block(t, d)}, ridge_of(d)), dense.add({block(t, d)}, ridge_of(d));
    resumed_window.add({block(t, d)}, ridge_of(d)), resumed_dense.add({block(t, d)}, ridge_of(d));
  }
  EXPECT_TRUE(at::equal(window.solve(rhs(d), ridge_of(d)), resumed_window.solve(rhs(d), ridge_of(d))));
  EXPECT_TRUE(at::equal(dense.solve(rhs(d), ridge_of(d)), resumed_dense.solve(rhs(d), ridge_of(d))));
}

TEST(InverseTracker, TakesFloatAndStaysRight) {
  const int64_t d = 8;
  const at::Tensor ridge = ridge_of(d).to(at::kFloat), b = rhs(d).to(at::kFloat);
  WindowedInverse window(6, kRows), exact_window(6, kRows);
  SmoothedInverse dense(0.99), exact_dense(0.99);
  for (int64_t t = 0; t < 1000; ++t) {
    window.add({block(t, d).to(at::kFloat)}, ridge), dense.add({block(t, d).to(at::kFloat)}, ridge);
    exact_window.add({block(t, d)}, ridge_of(d)), exact_dense.add({block(t, d)}, ridge_of(d));
  }
  EXPECT_EQ(window.solve(b, ridge).scalar_type(), at::kFloat);
  EXPECT_EQ(dense.solve(b, ridge).scalar_type(), at::kFloat);
  EXPECT_LT(distance(window.solve(b, ridge).to(at::kDouble), exact_window.solve(rhs(d), ridge_of(d))), 1e-4);
  EXPECT_LT(distance(dense.solve(b, ridge).to(at::kDouble), exact_dense.solve(rhs(d), ridge_of(d))), 1e-5);
}

TEST(InverseTracker, SaysWhereTheMatrixIsNotPositiveDefiniteAndBeginsAnew) {
  const int64_t d = 8;
  SmoothedInverse dense(0.9);
  EXPECT_FALSE(dense.add({at::full({kRows, d}, std::nan(""), at::kDouble)}, ridge_of(d)));
  EXPECT_TRUE(dense.state().empty());
  EXPECT_TRUE(dense.add({block(0, d)}, ridge_of(d)));
  EXPECT_FALSE(dense.add({at::full({kRows, d}, std::nan(""), at::kDouble)}, ridge_of(d)));
  EXPECT_TRUE(dense.state().empty());
}

TEST(InverseTracker, RefusesWhatDoesNotFit) {
  EXPECT_THROW(SmoothedInverse(1.0), Error);
  EXPECT_THROW(SmoothedInverse(0.0), Error);
  EXPECT_THROW(WindowedInverse(0, 1), Error);
  WindowedInverse window(6, kRows);
  EXPECT_THROW(window.add({block(0, 8).narrow(0, 0, 2)}, ridge_of(8)), Error);
  EXPECT_THROW(window.add({block(0, 8)}, ridge_of(9)), Error);
  EXPECT_THROW(window.solve(rhs(8), ridge_of(8)), Error);
  EXPECT_THROW(SmoothedInverse(0.5).solve(rhs(8), ridge_of(8)), Error);
}

}  // namespace
}  // namespace bilevel::inverse_tracker_test
