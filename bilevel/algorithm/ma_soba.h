#pragma once
#include "bilevel/algorithm/single_loop.h"

namespace bilevel {

struct MaSobaOptions : SingleLoopOptions {
  double averaging = 0.1;  // θ, in (0, 1]: the share of the new direction of x; 1 is soba
  std::vector<std::string> violations() const;
};
/// Reads [outer] averaging beside what SingleLoopOptions holds.
void read(Section& inner, Section& outer, MaSobaOptions& options);

/// MA-SOBA (Chen, Xiao & Balasubramanian 2023, "Optimal algorithms for stochastic bilevel optimization under relaxed smoothness
/// conditions"): y and q move as in SOBA, and x along the exponential mean of its direction.
///
///     m ← (1 − θ) m + θ D_x,   x ← P(x − ρ_x m)
///
/// State: `ma-soba.inner` and `ma-soba.outer` [dx], the means of (∂x r)ᵀ q and ∂x f, whose difference is m. They begin at zero,
/// and are changed in place.
class MaSoba final : public SingleLoop {
 public:
  /// Steps shrink with √t, as those of SOBA.
  static MaSobaOptions defaults();
  explicit MaSoba(const Oracle& oracle, MaSobaOptions options = defaults());
  std::string_view name() const override { return "ma-soba"; }

 protected:
  Reduction reduction(State& state) const override;
  void add_to(State& start) const override;

 private:
  double averaging_;
};

}  // namespace bilevel
