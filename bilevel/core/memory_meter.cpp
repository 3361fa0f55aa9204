#include "bilevel/core/memory_meter.h"

#include <algorithm>

#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>

namespace bilevel {
namespace {

// LibTorch reports each allocation of a thread to the profiler state of that thread.
class Reporter final : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override {
    current += bytes;
    peak = std::max(peak, current);
  }
  bool memoryProfilingEnabled() const override { return true; }

  int64_t current = 0, peak = 0;
};

}  // namespace

struct MemoryMeter::Impl {
  std::shared_ptr<Reporter> reporter = std::make_shared<Reporter>();
  c10::DebugInfoGuard guard{c10::DebugInfoKind::PROFILER_STATE, reporter};
};

MemoryMeter::MemoryMeter() : impl_(std::make_shared<Impl>()) {}
MemoryMeter::~MemoryMeter() = default;
int64_t MemoryMeter::current_bytes() const { return impl_->reporter->current; }
int64_t MemoryMeter::peak_bytes() const { return impl_->reporter->peak; }

}  // namespace bilevel
