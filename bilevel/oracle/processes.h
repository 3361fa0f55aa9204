#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/Device.h>
#include <c10/util/intrusive_ptr.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace c10d {
class ProcessGroup;
}

namespace bilevel {

/// A process of the group has gone, or did not come to an exchange in time.
class LostProcess : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What has failed in another process, which tells about it.
class FailedElsewhere : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The processes that work on one run together: a c10d::ProcessGroup (Gloo, NCCL or one's own), of which all-reduces of sums are
/// all that is used, with a count of what was sent.
///
/// Every member from `sum` to `all_or_none` is one exchange (or two): all processes must call them in the same order, with the
/// same sizes, and all get the same bits. They throw LostProcess. Nothing is exchanged where there is one process.
class Processes {
 public:
  /// `device`: where small numbers are put for an exchange; of a group that serves CUDA alone (NCCL) it must be that.
  explicit Processes(const c10::intrusive_ptr<c10d::ProcessGroup>& group, c10::Device device = c10::Device(c10::kCPU));
  /// The group that torch.distributed knows by this name (`dist.group.WORLD.group_name`), of this same process.
  static std::shared_ptr<Processes> named(const std::string& group);
  ~Processes();

  int64_t rank() const { return rank_; }
  int64_t size() const { return size_; }
  bool first() const { return rank_ == 0; }
  /// Seconds that an exchange may wait for the others: 60 unless set.
  void set_timeout(double seconds);

  /// Σ over the processes, in place: of all `pieces` in one exchange. One dtype and device.
  void sum(const std::vector<at::Tensor>& pieces) const;
  std::vector<double> of_all(double value) const;       // each process's, in the order of the ranks
  double greatest(double value) const;                  // of all
  std::string of_first(const std::string& text) const;  // the text of process 0
  /// The result of `work`, which exchanges nothing, where it succeeds in all processes. Else the first in which it failed throws
  /// what it threw there, and the others FailedElsewhere.
  template <class F>
  auto all_or_none(const F& work) const -> decltype(work());

  int64_t bytes() const { return bytes_; }  // that this process has put into exchanges so far
  int64_t exchanges() const { return exchanges_; }

 private:
  void all_reduce(const at::Tensor& buffer) const;
  struct Group;
  std::unique_ptr<const Group> group_;
  int64_t rank_ = 0, size_ = 1;
  c10::Device device_;
  double timeout_ = 60;
  mutable int64_t bytes_ = 0, exchanges_ = 0;
};

template <class F>
auto Processes::all_or_none(const F& work) const -> decltype(work()) {
  std::optional<decltype(work())> result;
  std::exception_ptr failure;
  try {
    result = work();
  } catch (...) {
    failure = std::current_exception();
  }
  const std::vector<double> failed = of_all(failure ? 1 : 0);
  const int64_t who = std::find(failed.begin(), failed.end(), 1.0) - failed.begin();
  if (who == size_) return std::move(*result);
  if (who == rank_) std::rethrow_exception(failure);
  throw FailedElsewhere("Process " + std::to_string(who) + " failed, and told why.");
}

}  // namespace bilevel
