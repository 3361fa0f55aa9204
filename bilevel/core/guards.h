#pragma once
#include <cstdint>
#include <memory>

#include <ATen/core/Tensor.h>

namespace bilevel {

/// Seeds LibTorch's default generators for the calls of user code inside its scope (dropout, sampling) and gives the generators
/// their former states back at its end, also when user code throws.
class SeedGuard {
 public:
  explicit SeedGuard(uint64_t seed);
  ~SeedGuard();
  SeedGuard(const SeedGuard&) = delete;
  SeedGuard& operator=(const SeedGuard&) = delete;

 private:
  at::Tensor former_;
};

/// Sets the number of LibTorch's intra-op threads for its scope.
class ThreadsGuard {
 public:
  explicit ThreadsGuard(int threads);
  ~ThreadsGuard();
  ThreadsGuard(const ThreadsGuard&) = delete;
  ThreadsGuard& operator=(const ThreadsGuard&) = delete;

 private:
  int former_;
};

}  // namespace bilevel
