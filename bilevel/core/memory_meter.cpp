#include "bilevel/core/memory_meter.h"

#include <c10/core/Allocator.h>
#include <c10/util/Logging.h>
#include <c10/util/ThreadLocalDebugInfo.h>

#include <algorithm>
#include <mutex>

namespace bilevel {
namespace {

// LibTorch reports each allocation of a thread to the profiler state of that thread, of which there is one.
class Reporter final : public c10::MemoryReportingInfoBase {
 public:
  Reporter()
      : outer_info_(c10::ThreadLocalDebugInfo::current()),
        outer_(dynamic_cast<c10::MemoryReportingInfoBase*>(c10::ThreadLocalDebugInfo::get(c10::DebugInfoKind::PROFILER_STATE))) {}

  void reportMemoryUsage(void* block, int64_t bytes, size_t allocated, size_t reserved, c10::Device device) override {
    current += bytes;
    peak = std::max(peak, current);
    if (outer_ != nullptr && outer_->memoryProfilingEnabled()) {
      outer_->reportMemoryUsage(block, bytes, allocated, reserved, device);
    }
  }
  bool memoryProfilingEnabled() const override { return true; }

  int64_t current = 0, peak = 0;

 private:
  std::shared_ptr<c10::ThreadLocalDebugInfo> outer_info_;  // owns outer_
  c10::MemoryReportingInfoBase* outer_;
};

// The level of LibTorch's log belongs to the process, and threads have meters of their own: the first one alive raises it, the
// last one puts it back.
class Quiet {
 public:
  Quiet() {
    const std::lock_guard lock(mutex());
    if (alive()++ > 0) return;
    former() = FLAGS_caffe2_log_level;
    FLAGS_caffe2_log_level = std::max<int>(FLAGS_caffe2_log_level, c10::GLOG_ERROR);
  }
  ~Quiet() {
    const std::lock_guard lock(mutex());
    if (--alive() == 0) FLAGS_caffe2_log_level = former();
  }
  Quiet(const Quiet&) = delete;
  Quiet& operator=(const Quiet&) = delete;

 private:
  static std::mutex& mutex() {
    static std::mutex instance;
    return instance;
  }
  static int& alive() {
    static int count = 0;
    return count;
  }
  static int& former() {
    static int level = 0;
    return level;
  }
};

}  // namespace

struct MemoryMeter::Impl {
  Quiet quiet;
  std::shared_ptr<Reporter> reporter = std::make_shared<Reporter>();
  c10::DebugInfoGuard guard{c10::DebugInfoKind::PROFILER_STATE, reporter};
};

MemoryMeter::MemoryMeter() : impl_(std::make_shared<Impl>()) {}
MemoryMeter::~MemoryMeter() = default;
int64_t MemoryMeter::current_bytes() const { return impl_->reporter->current; }
int64_t MemoryMeter::peak_bytes() const { return impl_->reporter->peak; }

}  // namespace bilevel
