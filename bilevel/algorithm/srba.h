#pragma once
#include "bilevel/algorithm/single_loop.h"

namespace bilevel {

struct SrbaOptions : SingleLoopOptions {
  int64_t period = 0;  // steps from one pass over all samples to the next; 0: half of the batches of both losses
  std::vector<std::string> violations() const;
};
/// Reads [outer] period beside what SingleLoopOptions holds.
void read(Section& inner, Section& outer, SrbaOptions& options);

/// SRBA (Dagréou, Moreau, Vaiter & Ablin 2023, "A lower bound and a near-optimal algorithm for bilevel empirical risk
/// minimization", Algorithm 1): SARAH (Nguyen, Liu, Scheinberg & Takáč 2017) on each of the five quantities, so that the noise
/// falls with the moves and constant steps converge, without a memory of the batches.
///
///     D_t = D_{t−1} + D^B(x_t, y_t, q_t) − D^B(x_{t−1}, y_{t−1}, q_{t−1}),   D_t of all samples where t is a multiple of the
///     period
class Srba final : public SingleLoop {
 public:
  static SrbaOptions defaults() { return {}; }
  explicit Srba(const Oracle& oracle, SrbaOptions options = defaults());
  std::string_view name() const override { return "srba"; }

 protected:
  int64_t period() const override { return period_; }

 private:
  int64_t period_;
};

}  // namespace bilevel
