#pragma once
#include "bilevel/core/config.h"
#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

struct UnrolledOptions {
  int64_t steps = 0;  // differentiate the last so many steps; 0: all. The rest is a bias of about (1 − ημ)^steps
  Memory memory = Memory::kGraphs;  // fastest; the others trade time for memory and give the same numbers
  int64_t budget = 0;               // bytes for checkpoints, of the solve and the way back together; 0: √T of them
  std::vector<std::string> violations() const;
};
/// Keys: steps, memory = "graphs" | "states" | "checkpoints", budget (bytes, or text such as "200MB").
void read(Section& section, UnrolledOptions& options);

/// The derivative of F_T(x) = f(x, y_T(x)) by reverse mode through the steps of the inner solve (Domke 2012; Maclaurin, Duvenaud
/// & Adams 2015; truncated: Shaban, Cheng, Hatch & Boots 2019).
///
/// The rule's state (momentum, moments), hyperparameters that x determines, and a start y₀(x) are all differentiated. Exact for
/// F_T whatever T is; with `steps` = K it is exact for the map from y_{T−K} on, with y_{T−K} held fixed. So is y₀ where it was
/// carried over from an earlier outer step. The error bound of a truncated one is
/// against F_T, by going back through all steps once where a bound is asked for. Costs a vjp of rule and loss for each step: two
/// to four times the inner solve.
class Unrolled final : public Estimator {
 public:
  explicit Unrolled(UnrolledOptions options = {});
  std::string_view name() const override { return "unrolled"; }
  TrajectoryPolicy trajectory() const override;
  std::vector<std::string> objections(const Problem& problem, const InnerSolver& solver) const override;
  Hypergradient estimate(const EstimatorInput& in) const override;

 private:
  UnrolledOptions options_;
};

}  // namespace bilevel
