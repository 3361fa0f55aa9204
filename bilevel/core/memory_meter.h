#pragma once
#include <cstdint>
#include <memory>

namespace bilevel {

/// Meters the bytes of CPU tensors that are allocated and freed by this thread within its scope.
///
/// Meters nest: what an inner one sees, the outer ones of the thread see too, and so does a profiler of LibTorch's. Those that
/// are alive in one thread must end in the opposite order of their beginning. LibTorch's warning that memory from before the
/// scope is freed within it, which is no news here, is held back while any meter is alive, and with it every warning that
/// LibTorch logs.
class MemoryMeter {
 public:
  MemoryMeter();
  ~MemoryMeter();
  MemoryMeter(const MemoryMeter&) = delete;
  MemoryMeter& operator=(const MemoryMeter&) = delete;

  int64_t current_bytes() const;  // held now, of what was allocated in the scope
  int64_t peak_bytes() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace bilevel
