#include "bilevel/linear/overlapped_tracker.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <stdexcept>
#include <thread>

#include "bilevel/core/error.h"
#include "bilevel/core/guards.h"
#include "bilevel/core/memory_meter.h"
#include "bilevel/core/stream.h"
#include "bilevel/linear/kronecker_inverse.h"

namespace bilevel::overlapped_tracker_test {
namespace {

constexpr int64_t kSize = 60;

at::Tensor block(int64_t t) { return Stream(0, "overlapped").at(t).normal({4, kSize}); }
at::Tensor ridge() { return at::full({kSize}, 0.1, at::kDouble); }
at::Tensor rhs() { return Stream(0, "rhs").at(0).normal({kSize}); }

std::unique_ptr<InverseTracker> tracker(bool dense) {
  if (dense) return std::make_unique<SmoothedInverse>(0.95);
  return std::make_unique<KroneckerInverse>(0.95, Layout().add("l.weight", {5, 11}).add("l.bias", {5}));
}

TEST(OverlappedTracker, GivesTheBitsOfTheTrackerAlone) {
  const ThreadsGuard one(1);
  for (const bool dense : {true, false}) {
    const auto alone = tracker(dense);
    OverlappedTracker overlapped(tracker(dense));
    for (int64_t solve = 0; solve < 4; ++solve) {
      for (int64_t t = 0; t < 30; ++t) alone->take(block(30 * solve + t)), overlapped.take(block(30 * solve + t));
      ASSERT_TRUE(alone->settle(ridge()) && overlapped.settle(ridge()));
      EXPECT_TRUE(at::equal(alone->solve(rhs(), ridge()), overlapped.solve(rhs(), ridge()))) << solve;
    }
    ASSERT_EQ(alone->state().size(), overlapped.state().size());
    for (size_t i = 0; i < alone->state().size(); ++i) EXPECT_TRUE(at::equal(alone->state()[i], overlapped.state()[i]));
    EXPECT_GT(overlapped.busy_seconds(), 0);
    EXPECT_GE(overlapped.hidden_seconds(), 0);
    EXPECT_LE(overlapped.hidden_seconds(), overlapped.busy_seconds());
  }
}

/// Notes which threads it is called on, and throws at the third block.
class Telltale final : public InverseTracker {
 public:
  explicit Telltale(std::atomic<int>& taken) : taken_(taken) {}
  void take(const at::Tensor& /*S*/) override {
    elsewhere = std::this_thread::get_id() != made_on_;
    threads = at::get_num_threads();
    if (++taken_ == 3) throw std::out_of_range("the third");
  }
  bool settle(const at::Tensor& /*ridge*/) override { return true; }
  at::Tensor solve(const at::Tensor& b, const at::Tensor& /*ridge*/) const override { return b; }
  std::vector<at::Tensor> state() const override { return {}; }
  bool elsewhere = false;
  int threads = 0;

 private:
  std::atomic<int>& taken_;
  const std::thread::id made_on_ = std::this_thread::get_id();
};

TEST(OverlappedTracker, TakesOnASecondThreadOfOneAndGivesTheNumberOfThreadsBack) {
  const ThreadsGuard two(2);
  std::atomic<int> taken = 10;
  auto made = std::make_unique<Telltale>(taken);
  const Telltale& telltale = *made;
  OverlappedTracker overlapped(std::move(made));
  EXPECT_EQ(at::get_num_threads(), 2);
  overlapped.take(block(0));
  EXPECT_EQ(at::get_num_threads(), 1);
  EXPECT_TRUE(overlapped.settle(ridge()));
  EXPECT_EQ(at::get_num_threads(), 2);
  EXPECT_TRUE(telltale.elsewhere);
  EXPECT_EQ(telltale.threads, 1);
}

TEST(OverlappedTracker, ThrowsWhatTheTrackerThrewAndTakesNoMoreUntilThen) {
  std::atomic<int> taken = 0;
  OverlappedTracker overlapped(std::make_unique<Telltale>(taken));
  for (int64_t t = 0; t < 20; ++t) overlapped.take(block(t));
  EXPECT_THROW(overlapped.settle(ridge()), std::out_of_range);
  EXPECT_EQ(taken, 3);
  overlapped.take(block(0));
  EXPECT_TRUE(overlapped.settle(ridge()));
  EXPECT_EQ(taken, 4);
}

TEST(OverlappedTracker, EndsWithoutBeingSettled) {
  OverlappedTracker overlapped(tracker(true));
  overlapped.add({block(0)}, ridge());
  for (int64_t t = 1; t < 200; ++t) overlapped.take(block(t));
}

TEST(OverlappedTracker, LeavesTheBlocksToTheMeterOfTheThreadThatMadeThem) {
  const MemoryMeter meter;
  OverlappedTracker overlapped(tracker(false));
  const int64_t before = meter.current_bytes();
  for (int64_t t = 0; t < 50; ++t) overlapped.take(block(t));
  overlapped.settle(ridge());
  EXPECT_LT(meter.current_bytes() - before, 4 * kSize * 8);
}

TEST(OverlappedTracker, RefusesToWorkWithoutATracker) { EXPECT_THROW(OverlappedTracker(nullptr), Error); }

}  // namespace
}  // namespace bilevel::overlapped_tracker_test
