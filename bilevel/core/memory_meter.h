#pragma once
#include <cstdint>
#include <memory>

namespace bilevel {

/// Meters the bytes of CPU tensors that are allocated and freed by this thread within its scope.
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
