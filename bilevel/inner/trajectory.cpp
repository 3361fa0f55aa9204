#include "bilevel/inner/trajectory.h"

#include <fmt/format.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/inner/rule_solver.h"

namespace bilevel {

Trajectory::Trajectory(const RuleSolver& solver, SolveContext context, TrajectoryPolicy policy, int64_t most_steps)
    : solver_(solver), context_(std::move(context)), policy_(policy) {
  require(policy_.last >= -1, fmt::format("Trajectory: last = {} must be at least 0, or -1 for all steps.", policy_.last));
  // c checkpoints of T/c steps each hold c + T/c points at most: least at c = √T.
  const int64_t steps = policy_.last < 0 ? most_steps : std::min(most_steps, policy_.last);
  if (policy_.memory == Memory::kCheckpoints) {
    every_ = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(steps)))));
  }
}

void Trajectory::record(const Point& before, std::unique_ptr<Linearization> linearization) {
  const int64_t t = steps_++;
  if (t % every_ == 0) kept_.push_back({t, before, std::move(linearization)});
  // A checkpoint serves until the next one is old enough to replay from.
  while (!kept_.empty() && kept_.front().t + every_ <= first()) kept_.pop_front();
}

Step Trajectory::take(int64_t t) {
  const int64_t due = next_ < 0 ? steps_ - 1 : next_;
  require(t == due && t >= first(),
          fmt::format("Trajectory::take: step {} was asked for, but step {} is due, of {} to {}.", t, due, first(), steps_ - 1));
  next_ = t - 1;
  Kept kept = pop(t);
  if (!kept.linearization) {
    kept.linearization =
        context_.oracle.linearize_inner(context_.x, kept.point.y, solver_.batch(context_.first_step + t, context_.slice));
  }
  at::Tensor gradient = kept.linearization->residual();
  return {solver_.input(context_, kept.point, t, std::move(gradient)), std::move(kept.linearization)};
}

Trajectory::Kept Trajectory::pop(int64_t t) {
  if (segment_.empty() && kept_.back().t < t) replay_up_to(t);
  if (!segment_.empty()) {
    Kept kept = std::move(segment_.back());
    segment_.pop_back();
    return kept;
  }
  Kept kept = std::move(kept_.back());
  kept_.pop_back();
  return kept;
}

// The points after the last checkpoint, up to that of step t.
void Trajectory::replay_up_to(int64_t t) {
  Point point = kept_.back().point;
  for (int64_t i = kept_.back().t; i < t; ++i) {
    point = solver_.replay(context_, point, i);
    if (i + 1 >= first()) segment_.push_back({i + 1, point, nullptr});
  }
}

}  // namespace bilevel
