#pragma once
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "bilevel/algorithm/algorithm.h"
#include "bilevel/core/config.h"
#include "bilevel/oracle/oracle.h"
#include "bilevel/problem/partition.h"

namespace bilevel {

struct SingleLoopOptions {
  std::optional<double> lr = std::nullopt;  // ρ of y and q; none: 1/L, L the curvature at the start
  double outer_lr = 0.1;                    // of x
  double decay = 0.0;                       // step sizes are divided by (t + 1)^decay
  int64_t batch = 64;                       // samples of g in a step; 0: all
  int64_t outer_batch = 64;                 // of f
  uint64_t seed = 0;                        // of the batches, and of losses that draw random numbers
  std::vector<std::string> violations() const;
};
/// Reads [inner] lr, decay, batch and [outer] lr, batch.
void read(Section& inner, Section& outer, SingleLoopOptions& options);

/// Throws Error for problems that a method with one y beside x cannot serve: several inner problems, inner constraints, a y₀ or
/// an update rule that x determines.
void require_one_free_inner_problem(const Problem& problem, std::string_view name);
/// `lr`, or 1/L with L a bound on the curvature at (x, y). Throws Error where that is not positive.
double step_size_at(const Oracle& oracle, const at::Tensor& x, const at::Tensor& y, std::optional<double> lr, uint64_t seed);

/// y, q and x moved together, one batch of each loss at a step (Dagréou, Ablin, Vaiter & Moreau 2022, "A framework for bilevel
/// optimization that enables stochastic and global variance reduction algorithms", eq. 6–8), all three at the old point:
///
///     y ← y − ρ D_y,   D_y ≈ ∂y g           q ← q − ρ (D_q + δ q),   D_q ≈ H q − ∂y f
///     x ← P(x − ρ_x D_x),   D_x ≈ ∂x f − (∂x r)ᵀ q
///
/// q is +H⁻¹∂y f where it comes to rest (the paper's −v). A method says how D is made of what the batches give: each of the five
/// quantities is multiplied by Partition::weight, so that its mean over the batches is that over all samples, and then handed to
/// `reduction`. State: `q` [dy], `lr`, and what a method adds; `outer_scale` multiplies ρ_x, `damping` is δ. x, y and q move in
/// one object for all steps of a call, and nothing is allocated between them on the CPU.
///
/// Records hold the losses and norms of the step's batches and the problem's metrics; `evaluate` takes all samples.
class SingleLoop : public Algorithm {
 public:
  State init() const override;
  Record step(State& state, int64_t n) const override;
  Record evaluate(State& state) const override;
  const SingleLoopOptions& options() const { return options_; }

 protected:
  /// Keeps a reference to `oracle`. Throws Error as `require_one_free_inner_problem`.
  SingleLoop(const Oracle& oracle, SingleLoopOptions options, std::string_view name);

  enum class Level { kInner, kOuter };
  /// Takes the quantities of batch `number` at one level, (∂y g, H q, (∂x r)ᵀ q) or (∂y f, ∂x f), to what the step goes along, in
  /// place. Made anew for each call of `step`.
  using Reduction = std::function<void(Level level, int64_t number, const at::Tensor& quantities)>;
  virtual Reduction reduction(State&) const { return {}; }
  virtual void add_to(State& start) const { (void)start; }
  /// Every so many steps the five quantities are taken of all samples, and between them each goes on by what its batch says of
  /// the last move, quantity(now) − quantity(before) (SARAH). 0: each step's batch gives them anew. State: `recursion.…`.
  virtual int64_t period() const { return 0; }

  const Oracle& oracle() const { return oracle_; }
  const Partition& batches(Level level) const { return level == Level::kInner ? inner_ : outer_; }

 private:
  class Walk;
  const Oracle& oracle_;
  SingleLoopOptions options_;
  Partition inner_, outer_;
};

}  // namespace bilevel
