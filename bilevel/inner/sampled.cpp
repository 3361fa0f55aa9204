#include "bilevel/inner/sampled.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"

namespace bilevel {

SampledSolver::SampledSolver(std::vector<std::unique_ptr<InnerSolver>> candidates, uint64_t seed)
    : candidates_(std::move(candidates)), seed_(seed) {
  require(!candidates_.empty(), "SampledSolver: candidates is empty; one solver at least is needed.");
  for (const auto& candidate : candidates_) {
    require(candidate->coupled_weight_decay() == 0,
            fmt::format(
                "SampledSolver: the candidate \"{}\" has a weight decay of {}, which moves the optimum of its solves alone; put "
                "it into the inner loss.",
                candidate->name(), candidate->coupled_weight_decay()));
  }
}

size_t SampledSolver::drawn(int64_t first_step, int64_t slice) const {
  const Stream stream(Stream(seed_, "inner solver").at(slice).seed(), "of a solve");
  return static_cast<size_t>(stream.at(first_step).integers(static_cast<int64_t>(candidates_.size()), {1}).item<int64_t>());
}

InnerSolution SampledSolver::solve(const Oracle& oracle, const at::Tensor& x, int64_t slice, const InnerStart& start,
                                   const TrajectoryPolicy& policy) const {
  const InnerStart fresh{.y = start.y, .first_step = start.first_step};
  InnerSolution solution = candidates_[drawn(start.first_step, slice)]->solve(oracle, x, slice, fresh, policy);
  solution.state.clear();
  solution.state_steps = 0;
  return solution;
}

at::Tensor SampledSolver::step_size(const Problem& /*problem*/, const at::Tensor& /*x*/) const {
  throw Error("SampledSolver::step_size: each solve draws another solver, so there is no step size of them all.");
}

bool SampledSolver::stops_at_stationarity() const {
  return std::all_of(candidates_.begin(), candidates_.end(), [](const auto& one) { return one->stops_at_stationarity(); });
}

}  // namespace bilevel
