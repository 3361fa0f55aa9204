#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

namespace bilevel {

/// The random numbers that belong to one moment of a stream: a function of (seed, purpose, t), drawn in order.
class Draw {
 public:
  Draw(uint64_t key, uint64_t t) : key_(key), t_(t) {}

  at::Tensor uniform(at::IntArrayRef sizes, at::ScalarType dtype = at::kDouble);  // on [0, 1)
  at::Tensor normal(at::IntArrayRef sizes, at::ScalarType dtype = at::kDouble);
  at::Tensor integers(int64_t bound, at::IntArrayRef sizes);  // int64 in 0…bound−1
  at::Tensor permutation(int64_t n);                          // int64 [n]
  uint64_t seed() const;                                      // for a generator of LibTorch's own

 private:
  std::vector<double> uniforms(int64_t count);
  uint64_t key_, t_;
  uint64_t drawn_ = 0;
};

/// Counter-based random numbers (Philox 4×32-10, Salmon et al. 2011): nothing is stored, so replaying a step, resuming a run and
/// recomputing a checkpointed segment all see the same numbers. Purposes name independent streams of one seed.
class Stream {
 public:
  Stream(uint64_t seed, std::string_view purpose);
  Draw at(int64_t t) const { return {key_, static_cast<uint64_t>(t)}; }

 private:
  uint64_t key_;
};

}  // namespace bilevel
