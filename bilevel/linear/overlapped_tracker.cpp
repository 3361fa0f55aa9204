#include "bilevel/linear/overlapped_tracker.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <utility>

#include "bilevel/core/clock.h"
#include "bilevel/core/error.h"

namespace bilevel {

OverlappedTracker::OverlappedTracker(std::unique_ptr<InverseTracker> tracker) : tracker_(std::move(tracker)) {
  require(tracker_ != nullptr, "OverlappedTracker: tracker is null.");
}

OverlappedTracker::~OverlappedTracker() {
  {
    const std::lock_guard lock(mutex_);
    queue_.clear();
  }
  join();
}

void OverlappedTracker::take(const at::Tensor& S) {
  if (!second_.joinable()) {
    threads_.emplace(1);
    ended_ = false;
    second_ = std::thread([this] { work(); });
  }
  std::vector<at::Tensor> taken;
  {
    const std::lock_guard lock(mutex_);
    queue_.push_back(S);
    taken.swap(taken_);
  }
  changed_.notify_one();
}

bool OverlappedTracker::settle(const at::Tensor& ridge) {
  const Clock::time_point began = Clock::now();
  join();
  waited_ = std::min(busy_, waited_ + seconds_since(began));
  if (thrown_) std::rethrow_exception(std::exchange(thrown_, nullptr));
  return tracker_->settle(ridge);
}

void OverlappedTracker::join() {
  if (!second_.joinable()) return;
  {
    const std::lock_guard lock(mutex_);
    ended_ = true;
  }
  changed_.notify_one();
  second_.join();
  taken_.clear();
  threads_.reset();
}

void OverlappedTracker::work() {
  at::set_num_threads(1);  // of this thread; a guard's end would give back what belongs to the process
  const at::NoGradGuard no_grad;
  for (;;) {
    at::Tensor S;
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [this] { return ended_ || !queue_.empty(); });
      if (queue_.empty()) return;
      S = std::move(queue_.front());
      queue_.pop_front();
    }
    const Clock::time_point began = Clock::now();
    try {
      if (!thrown_) tracker_->take(S);
    } catch (...) {
      thrown_ = std::current_exception();
    }
    busy_ += seconds_since(began);
    const std::lock_guard lock(mutex_);
    taken_.push_back(std::move(S));
  }
}

}  // namespace bilevel
