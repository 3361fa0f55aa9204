#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/core/stream.h"
#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

struct SpotCheckOptions {
  double target = 1e-6;      // ‖r‖ of a new inner solve, of that at its start
  double step = 0.0;         // h, relative to the size of x; 0: the fourth root of the rounding unit, then as it proves itself
  int64_t tries = 4;         // of other h where slopes are noise, or F bends
  double off_by_part = 0.1;  // WARN above this disagreement
  double off_by_all = 0.8;   // BAD: the slopes speak for another direction
  int64_t dense_dim = 200;   // as in BoundOptions
  int64_t products = 100;
  std::vector<std::string> violations() const;
};

/// The function that an estimator says it differentiates, to be evaluated at other x.
///
/// F: the inner problem is solved anew by Newton's method from the y that was reached, on the full batch, with r from the loss
/// itself; under constraints on y by an active-set method (hypergrad/active_set_newton.h). F_T: the inner rule's T steps again,
/// from the same start, with the same batches, step sizes and noise; "last K steps" holds y_{T−K} fixed. f is taken on the outer
/// batch of `in`, which must stay alive.
class NamedFunction {
 public:
  struct Value {
    double value = 0;
    double noise = 0;     // what rounding and the tolerance of the solve may have changed
    bool reached = true;  // the solve got where it should
  };
  virtual ~NamedFunction() = default;
  virtual Value at(const at::Tensor& x) const = 0;
  virtual std::string description() const = 0;  // of how it is evaluated

  /// Empty where the function cannot be evaluated; `why` then says why, in one sentence.
  static std::unique_ptr<NamedFunction> of(const EstimatorInput& in, const std::string& differentiates,
                                           const SpotCheckOptions& options, std::string& why);
};

/// Compares dᵀ value with slopes of the mean of `functions` (one for each inner problem) at x, for d = value/‖value‖ and one
/// random direction from `draw`: central differences at h and h/2, extrapolated (Richardson). Their disagreement with each other
/// says how far they can be trusted. A slope along a random d stands for √dx times as much error, which is what it has on
/// average.
///
/// A value with a known bias (Certificate::bias) is judged by the slope along itself alone: BAD where that has the other sign,
/// WARN where it is off by more than off_by_part.
SpotCheck spot_check(const Hypergradient& h, const at::Tensor& x, const std::vector<std::unique_ptr<NamedFunction>>& functions,
                     Draw draw, const SpotCheckOptions& options = {});

/// Takes the check into the certificate, and its grade where that is worse. Where neither the check nor the error bound can vouch
/// for the value, that is a warning. Where slopes agree, and a corrected solve at a minimum does too, a warning is lifted.
void take(Hypergradient& h, SpotCheck check);

}  // namespace bilevel
