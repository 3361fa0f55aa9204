#pragma once
#include <optional>
#include <string>
#include <vector>

#include "bilevel/algorithm/algorithm.h"
#include "bilevel/core/config.h"
#include "bilevel/oracle/oracle.h"
#include "bilevel/problem/batch.h"

namespace bilevel {

struct BomeOptions {
  std::optional<double> lr = std::nullopt;  // of the inner steps; none: 1/L, L the curvature at the start
  int64_t inner_steps = 10;                 // K
  double outer_lr = 0.1;                    // ρ_x
  double y_lr = 0;                          // ρ_y; 0: as lr
  double eta = 0.5;                         // how fast the gap must fall, relative to its squared gradient
  int64_t batch = 0;                        // samples of g in a step, for y^K too; 0: all
  int64_t outer_batch = 0;                  // of f
  uint64_t seed = 0;                        // of the batches
  std::vector<std::string> violations() const;
};
/// Reads [inner] lr, steps, batch and [outer] lr, y_lr, eta, batch.
void read(Section& inner, Section& outer, BomeOptions& options);

/// BOME (Ye, Liu, Wright, Stone & Liu 2022, "BOME! Bilevel optimization made easy: a simple first-order approach", Algorithm 1):
/// f descends in (x, y) under the constraint that the gap of the inner loss falls,
///
///     ĝap(x, y) = g(x, y) − g(x, y^K),   y^K: K gradient steps from y, held fixed
///     λ = max(η‖∇ĝap‖² − ⟨∇f, ∇ĝap⟩, 0) / ‖∇ĝap‖²
///     (x, y) ← (x, y) − (ρ_x, ρ_y)(∇f + λ ∇ĝap)
///
/// First derivatives alone. It comes to rest where the gap is about as small as ρ_x and ρ_y, so x is that of a slightly relaxed
/// problem: no hypergradient is ever formed, and none can be certified. State: `x`, `y`, `step`, `lr`; `outer_scale` multiplies
/// ρ_x. Records are of the step's batches; `evaluate` takes all samples.
class Bome final : public Algorithm {
 public:
  static BomeOptions defaults() { return {}; }
  /// Keeps a reference to `oracle`. Throws Error as `require_one_free_inner_problem` (algorithm/single_loop.h).
  explicit Bome(const Oracle& oracle, BomeOptions options = defaults());
  std::string_view name() const override { return "bome"; }
  State init() const override;
  Record step(State& state, int64_t n) const override;
  Record evaluate(State& state) const override;

 private:
  struct Direction;
  Direction direction(const State& state, const Batch& inner, const Batch& outer) const;
  const Oracle& oracle_;
  BomeOptions options_;
  BatchPlan inner_, outer_;
};

}  // namespace bilevel
