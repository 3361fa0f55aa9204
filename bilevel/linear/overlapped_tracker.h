#pragma once
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "bilevel/core/guards.h"
#include "bilevel/linear/inverse_tracker.h"

namespace bilevel {

/// A tracker that takes its blocks on a second thread while the first one makes the next: the same blocks in the same order. From
/// the first of them to `settle` both threads have one of LibTorch's, so where the first had no more before, the bits are those
/// of the tracker alone. `settle` waits for what is left to take, and throws what the tracker threw. In between nothing is shared
/// but the queue: blocks are handed over and not written to again, and the tracker belongs to the second thread.
class OverlappedTracker final : public InverseTracker {
 public:
  explicit OverlappedTracker(std::unique_ptr<InverseTracker> tracker);
  /// Drops what was not taken yet.
  ~OverlappedTracker() override;
  OverlappedTracker(const OverlappedTracker&) = delete;
  OverlappedTracker& operator=(const OverlappedTracker&) = delete;

  void take(const at::Tensor& S) override;
  bool settle(const at::Tensor& ridge) override;
  at::Tensor solve(const at::Tensor& b, const at::Tensor& ridge) const override { return tracker_->solve(b, ridge); }
  std::vector<at::Tensor> state() const override { return tracker_->state(); }

  double busy_seconds() const { return busy_; }              // of the second thread, up to the last `settle`
  double hidden_seconds() const { return busy_ - waited_; }  // of those, during which the first thread did not wait

 private:
  void work();
  void join();
  std::unique_ptr<InverseTracker> tracker_;
  std::optional<ThreadsGuard> threads_;  // while there is a second one
  std::thread second_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<at::Tensor> queue_;
  std::vector<at::Tensor> taken_;  // to be freed by the thread that made them, whose meters know them
  bool ended_ = false;             // no more blocks until the thread has ended
  std::exception_ptr thrown_;
  double busy_ = 0, waited_ = 0;
};

}  // namespace bilevel
