#include "bilevel/core/memory_meter.h"

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/util/Logging.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>

#include <optional>
#include <vector>

namespace bilevel {
namespace {

at::Tensor bytes(int64_t count) { return at::zeros({count}, at::kByte); }

TEST(MemoryMeter, MetersWhatIsAllocatedInItsScope) {
  const MemoryMeter meter;
  const at::Tensor kept = bytes(8000);
  { const at::Tensor passing = bytes(40000); }
  EXPECT_NEAR(static_cast<double>(meter.current_bytes()), 8000, 200);
  EXPECT_NEAR(static_cast<double>(meter.peak_bytes()), 48000, 400);
}

TEST(MemoryMeter, ReportsToTheMetersAroundIt) {
  const MemoryMeter outer;
  const at::Tensor before = bytes(10000);
  at::Tensor kept;
  {
    const MemoryMeter middle;
    const at::Tensor between = bytes(3000);
    {
      const MemoryMeter inner;
      kept = bytes(20000);
      { const at::Tensor passing = bytes(50000); }
      EXPECT_NEAR(static_cast<double>(inner.current_bytes()), 20000, 200);
      EXPECT_NEAR(static_cast<double>(inner.peak_bytes()), 70000, 400);
    }
    EXPECT_NEAR(static_cast<double>(middle.current_bytes()), 23000, 400);
    EXPECT_NEAR(static_cast<double>(middle.peak_bytes()), 73000, 600);
  }
  EXPECT_NEAR(static_cast<double>(outer.current_bytes()), 30000, 600);
  EXPECT_NEAR(static_cast<double>(outer.peak_bytes()), 83000, 800);
  const at::Tensor after = bytes(60000);  // the outer one meters on
  EXPECT_NEAR(static_cast<double>(outer.peak_bytes()), 90000, 800);
}

TEST(MemoryMeter, ReportsToAProfilerAroundIt) {
  struct Profiler final : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override { most = std::max(most, bytes); }
    bool memoryProfilingEnabled() const override { return true; }
    int64_t most = 0;
  };
  const auto profiler = std::make_shared<Profiler>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, profiler);
  const MemoryMeter meter;
  const at::Tensor kept = bytes(30000);
  EXPECT_NEAR(static_cast<double>(profiler->most), 30000, 200);
}

// LibTorch logs every thousandth free of memory that is older than the meter.
std::string what_is_logged_when_old_memory_is_freed(bool metered) {
  std::vector<at::Tensor> old;
  for (int i = 0; i < 2500; ++i) old.push_back(bytes(8));
  ::testing::internal::CaptureStderr();
  {
    std::optional<MemoryMeter> meter;
    std::optional<c10::DebugInfoGuard> guard;
    struct Silent final : c10::MemoryReportingInfoBase {
      void reportMemoryUsage(void*, int64_t, size_t, size_t, c10::Device) override {}
      bool memoryProfilingEnabled() const override { return true; }
    };
    if (metered) {
      meter.emplace();
    } else {
      guard.emplace(c10::DebugInfoKind::PROFILER_STATE, std::make_shared<Silent>());
    }
    old.clear();
  }
  return ::testing::internal::GetCapturedStderr();
}

TEST(MemoryMeter, KeepsLibTorchFromWarningOfOldMemory) {
  EXPECT_NE(what_is_logged_when_old_memory_is_freed(false), "");  // it would
  EXPECT_EQ(what_is_logged_when_old_memory_is_freed(true), "");
}

TEST(MemoryMeter, GivesTheLogItsLevelBackWithTheLastMeter) {
  const int level = FLAGS_caffe2_log_level;
  {
    const MemoryMeter outer;
    EXPECT_GE(FLAGS_caffe2_log_level, static_cast<int>(c10::GLOG_ERROR));
    { const MemoryMeter inner; }
    EXPECT_GE(FLAGS_caffe2_log_level, static_cast<int>(c10::GLOG_ERROR));
  }
  EXPECT_EQ(FLAGS_caffe2_log_level, level);
}

}  // namespace
}  // namespace bilevel
