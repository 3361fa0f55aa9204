#include "bilevel/inner/trajectory.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "bilevel/core/bytes.h"
#include "bilevel/core/error.h"
#include "bilevel/core/memory_meter.h"
#include "bilevel/inner/rule_solver.h"

// Revolve: with c checkpoints and each step taken at most r times again, the longest chain that can be gone through backwards has
//
//   β(c, r) = (c + r choose c) = β(c, r − 1) + β(c − 1, r)   steps.
//
// For l of them, r the least with β(c, r) ≥ l, the next checkpoint is j steps on, where the first j still need at most r − 1
// repetitions with c checkpoints, and the other l − j at most r with c − 1.

namespace bilevel {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

// β(c, r), or anything above `enough`.
int64_t longest_chain(int64_t c, int64_t r, int64_t enough) {
  if (r < 0 || c < 0) return 0;
  double chain = 1;
  for (int64_t i = 1; i <= r && chain <= static_cast<double>(enough); ++i)
    chain = chain * static_cast<double>(c + i) / static_cast<double>(i);
  return chain > static_cast<double>(enough) ? enough + 1 : std::llround(chain);
}

}  // namespace

int64_t next_checkpoint(int64_t steps, int64_t checkpoints) {
  require(steps >= 2 && checkpoints >= 2,
          fmt::format("next_checkpoint: {} steps and {} checkpoints, where two of each are needed.", steps, checkpoints));
  int64_t r = 1;
  while (longest_chain(checkpoints, r, steps) < steps) ++r;
  return std::min(longest_chain(checkpoints, r - 1, steps), steps - longest_chain(checkpoints - 1, r - 1, steps));
}

Trajectory::Trajectory(const RuleSolver& solver, SolveContext context, TrajectoryPolicy policy, int64_t most_steps)
    : solver_(solver), context_(std::move(context)), policy_(std::move(policy)) {
  require(policy_.last >= -1, fmt::format("Trajectory: last = {} must be at least 0, or -1 for all steps.", policy_.last));
  require(policy_.slots >= 0, fmt::format("Trajectory: slots = {} must be at least 0.", policy_.slots));
  require(policy_.budget >= 0, fmt::format("Trajectory: budget = {} must be at least 0.", policy_.budget));
  if (solver.options().tolerance == 0) known_steps_ = most_steps;
  const int64_t steps = policy_.last < 0 ? most_steps : std::min(most_steps, policy_.last);
  if (policy_.budget > 0) divide_budget(steps);
  if (policy_.memory != Memory::kCheckpoints) {
    policy_.slots = 0;
  } else if (policy_.slots == 0) {
    // c checkpoints of T/c steps each hold c + T/c points at most: least at c = √T.
    every_ = std::max<int64_t>(1, static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(steps)))));
  } else if (known_steps_ >= 0) {
    next_checkpoint_ = known_steps_ - steps;
  }
}

// What one step and its derivatives allocate at most, of the solve and of the way back; the vectors of dy that stand by meanwhile
// (the ends of the solve, the adjoints); and the rest in graphs, states or checkpoints.
void Trajectory::divide_budget(int64_t steps) {
  const at::NoGradGuard no_grad;
  const Oracle& oracle = context_.oracle;
  const at::Tensor y = oracle.problem().initial_inner(context_.x, context_.slice).detach().to(context_.x.options());
  const Point point{y, solver_.rule().fresh_state(y), 0};
  const Batch batch = solver_.batch(context_.first_step, context_.slice);

  const auto peak = [&](const auto& work) {
    const MemoryMeter meter;
    work();
    return oracle.greatest(meter.peak_bytes());
  };
  int64_t graph = 0;
  const int64_t back = peak([&] {
    const MemoryMeter meter;
    const auto linearization = oracle.linearize_inner(context_.x, y, batch);
    const RuleInput input = solver_.input(context_, point, 0, linearization->residual());
    graph = meter.current_bytes();
    const RuleCotangent bar = solver_.rule().vjp(input, y, point.state);
    const Vjp both = linearization->vjp(bar.gradient);
  });
  graph = oracle.greatest(graph);
  const int64_t ahead = peak([&] {
    const Gradients g = oracle.inner(context_.x, y, batch);
    const Point next = solver_.advance(context_, point, 0, g.y);
  });
  Batch all;
  all.slice = context_.slice;
  const int64_t outer = peak([&] { const Gradients f = oracle.outer(context_.x, y, all); });
  const int64_t whole = batch.full() ? 0 : peak([&] { const Gradients g = oracle.inner(context_.x, y, all); });

  constexpr int64_t kBlock = 64;  // LibTorch rounds up to
  const int64_t item = y.element_size();
  const int64_t kept = (1 + solver_.rule().slots()) * (y.numel() * item + kBlock);
  const int64_t fixed = std::max({back, ahead, outer, whole}) + 6 * kept + 4 * (context_.x.numel() * item + kBlock) + 4096;
  policy_.memory = Memory::kGraphs;
  if (fixed + steps * (graph + kept) <= policy_.budget) return;
  policy_.memory = Memory::kStates;
  if (fixed + steps * kept <= policy_.budget) return;
  policy_.memory = Memory::kCheckpoints;
  policy_.slots = (policy_.budget - fixed) / kept;
  if (policy_.budget < fixed + kept) {
    throw Error(
        fmt::format("The memory budget of {} is too small: {} is the least, {} of it for one inner step with its derivatives and "
                    "for the outer "
                    "loss, and the rest for a few vectors like y; all {} steps with their graphs would fit into {}.",
                    bytes_text(static_cast<double>(policy_.budget)), bytes_text(static_cast<double>(fixed + kept)),
                    bytes_text(static_cast<double>(std::max({back, ahead, outer, whole}))), steps,
                    bytes_text(static_cast<double>(fixed + steps * (graph + kept)))));
  }
}

int64_t Trajectory::first() const {
  if (policy_.last < 0) return 0;
  // The places of checkpoints were fixed for T steps: a solve that broke off earlier has none of the last ones.
  if (policy_.slots > 0 && known_steps_ >= 0) return std::min(steps_, std::max<int64_t>(0, known_steps_ - policy_.last));
  return std::max<int64_t>(0, steps_ - policy_.last);
}

const Point& Trajectory::start() const {
  require(!kept_.empty() && kept_.front().t == 0, "Trajectory::start: the start of this solve was not kept.");
  return kept_.front().point;
}

void Trajectory::record(const Point& before, std::unique_ptr<Linearization> linearization) {
  const int64_t t = steps_++;
  if (policy_.follower && known_steps_ >= 0 && t >= (policy_.last < 0 ? 0 : known_steps_ - policy_.last)) {
    policy_.follower->see(before, batch(t), t);
  }
  if (policy_.slots > 0) return record_in_slots(before, t);
  if (t % every_ == 0) kept_.push_back({t, before, std::move(linearization)});
  // A checkpoint serves until the next one is old enough to replay from.
  while (!kept_.empty() && kept_.front().t + every_ <= first()) kept_.pop_front();
}

void Trajectory::record_in_slots(const Point& before, int64_t t) {
  current_ = before;
  const auto free = [this] { return policy_.slots - static_cast<int64_t>(kept_.size()); };
  if (known_steps_ >= 0) {
    if (t != next_checkpoint_ || free() == 0) return;
    const int64_t left = known_steps_ - t;
    next_checkpoint_ = left >= 2 && free() >= 2 ? t + next_checkpoint(left, free()) : kNever;
    kept_.push_back({t, before, nullptr});
    return;
  }
  if (t % every_ != 0) return;
  while (kept_.size() >= 2 && kept_[1].t <= first()) kept_.pop_front();
  if (free() == 0) {
    every_ *= 2;
    std::erase_if(kept_, [this](const Kept& kept) { return kept.t % every_ != 0 && kept.t != kept_.front().t; });
    if (t % every_ != 0 || free() == 0) return;
  }
  kept_.push_back({t, before, nullptr});
}

Trajectory::Kept Trajectory::due(int64_t t) {
  const int64_t due = next_ < 0 ? steps_ - 1 : next_;
  require(t == due && t >= first(),
          fmt::format("Trajectory::take: step {} was asked for, but step {} is due, of {} to {}.", t, due, first(), steps_ - 1));
  next_ = t - 1;
  return pop(t);
}

Batch Trajectory::batch(int64_t t) const { return solver_.batch(context_.first_step + t, context_.slice); }

Point Trajectory::take_point(int64_t t) { return due(t).point; }

Step Trajectory::take(int64_t t) {
  Kept kept = due(t);
  if (!kept.linearization) {
    kept.linearization = context_.oracle.linearize_inner(context_.x, kept.point.y, batch(t));
  }
  at::Tensor gradient = kept.linearization->residual();
  return {solver_.input(context_, kept.point, t, std::move(gradient)), std::move(kept.linearization)};
}

RuleInput Trajectory::last_input() const {
  require(steps_ > 0 && next_ < 0, "Trajectory::last_input: no step was taken, or the way back has begun.");
  const int64_t t = steps_ - 1;
  require(current_ || kept_.back().t == t, "Trajectory::last_input: the point before the last step was not kept.");
  const Point& point = current_ ? *current_ : kept_.back().point;
  return solver_.input(context_, point, t, context_.oracle.inner(context_.x, point.y, batch(t)).y);
}

Trajectory::Kept Trajectory::pop(int64_t t) {
  if (policy_.slots > 0) return pop_from_slots(t);
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

Trajectory::Kept Trajectory::pop_from_slots(int64_t t) {
  if (current_) {  // the last step's
    Point point = std::move(*current_);
    current_.reset();
    if (kept_.back().t == t) kept_.pop_back();
    return {t, std::move(point), nullptr};
  }
  Kept kept = std::move(kept_.back());
  kept_.pop_back();
  while (kept.t < t) {
    // The steps from the checkpoint on that are still to be gone back through, and what is free for them, its own place included.
    const int64_t left = t - std::max(kept.t, first()) + 1, free = policy_.slots - static_cast<int64_t>(kept_.size());
    const int64_t next = kept.t < first() ? first() : left >= 2 && free >= 2 ? kept.t + next_checkpoint(left, free) : t;
    Point point = kept.point;
    for (int64_t i = kept.t; i < next; ++i) point = solver_.replay(context_, point, i);
    if (kept.t >= first()) kept_.push_back(std::move(kept));  // one before first() has served
    kept = {next, std::move(point), nullptr};
  }
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
