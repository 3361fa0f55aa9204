#pragma once
#include <cstdint>

namespace bilevel {

/// What a computation has asked of the oracle, and of the machine.
struct Cost {
  int64_t forwards = 0;        // losses evaluated without a gradient
  int64_t gradients = 0;       // ∂y g, ∂y f, ∂x f (one backward pass each)
  int64_t hvps = 0;            // products with ∂y r or its transpose
  int64_t cross_products = 0;  // products with ∂x r or its transpose; free of charge in the same pass as an HVP, but counted
  double seconds = 0;
  double second_thread_seconds = 0;  // what a second thread of the computation worked
  double hidden_seconds = 0;         // of those, what the first one did not wait for
  int64_t peak_bytes = 0;            // of tensors held for the computation, where it is metered
  int64_t samples = 0;  // that all these calls looked at: each the size of its batch, 0 where the loss has no samples

  int64_t oracle_calls() const { return forwards + gradients + hvps + cross_products; }
  Cost& operator+=(const Cost& other);
  Cost operator-(const Cost& earlier) const;  // since `earlier`; peak_bytes stays
};

}  // namespace bilevel
