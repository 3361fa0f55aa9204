#pragma once
#include <cstdint>
#include <variant>

#include <ATen/core/Tensor.h>

#include "bilevel/core/stream.h"

namespace bilevel {

/// Which samples a loss is asked about, and when.
struct Batch {
  int64_t step = 0;    // t of the inner solve, or the outer step: replaying a step asks for the same batch again
  int64_t slice = 0;   // which inner problem, where an outer step has several
  at::Tensor samples;  // int64 [B]; undefined means all
  uint64_t seed = 0;   // of the generators, for a loss that draws random numbers

  bool full() const { return !samples.defined(); }
  int64_t size(int64_t all) const { return full() ? all : samples.numel(); }
};

/// The samples of batch t, a function of t alone.
class BatchPlan {
 public:
  /// All samples, every time.
  static BatchPlan full() { return {}; }
  /// Batches of `size` out of `samples`, without replacement within an epoch, reshuffled for each epoch. What
  /// does not fill a batch at the end of an epoch is left out of it.
  static BatchPlan shuffled(int64_t samples, int64_t size, Stream stream);
  /// The same, and all samples where `size` is 0 or takes them all.
  static BatchPlan of_size(int64_t samples, int64_t size, Stream stream);
  /// Row t modulo T of `indices`, integers [T, B], checked to be below `samples` where that is given.
  static BatchPlan fixed(at::Tensor indices, int64_t samples = 0);

  at::Tensor samples(int64_t t) const;  // undefined for all
  bool is_full() const { return std::holds_alternative<Full>(plan_); }

 private:
  struct Full {};
  struct Shuffled {
    int64_t samples, size;
    Stream stream;
    mutable int64_t epoch = -1;
    mutable at::Tensor order;
  };
  struct Fixed {
    at::Tensor indices;
  };
  std::variant<Full, Shuffled, Fixed> plan_;
};

}  // namespace bilevel
