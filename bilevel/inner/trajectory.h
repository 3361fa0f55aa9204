#pragma once
#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "bilevel/inner/update_rule.h"
#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// What is kept of an inner solve so that it can be gone through backwards.
enum class Memory {
  kGraphs,       // each step's linearization: fastest, memory ∝ T graphs
  kStates,       // each step's (y, s): memory ∝ T vectors, one more linearization a step
  kCheckpoints,  // every √T-th (y, s): memory ∝ √T vectors, one more solve
};

struct TrajectoryPolicy {
  bool keep = false;
  Memory memory = Memory::kGraphs;
  int64_t last = -1;  // keep the last so many steps only; −1: all
};

/// (y_t, s_t) and the number of steps since s was fresh.
struct Point {
  at::Tensor y;
  Tensors state;
  int64_t t = 0;
};

/// What stays the same throughout one solve.
struct SolveContext {
  const Oracle& oracle;
  at::Tensor x;
  int64_t slice = 0;
  int64_t first_step = 0;  // step t of the solve has batch first_step + t
  Tensors h;               // the rule's hyperparameters, before x overwrites those that it determines
};

/// One step as the backward pass needs it.
struct Step {
  RuleInput input;
  std::unique_ptr<Linearization> linearization;  // of the loss at y_t and batch t
};

class RuleSolver;

/// The steps first()…size()−1 of a solve. `take` is called for t = size()−1 down to first(), once each, and gives up what is no
/// longer needed. Refers to the solver and the oracle, which must outlive it.
class Trajectory {
 public:
  /// `most_steps` bounds the steps that will be recorded; the spacing of checkpoints follows from it.
  Trajectory(const RuleSolver& solver, SolveContext context, TrajectoryPolicy policy, int64_t most_steps);

  int64_t size() const { return steps_; }
  int64_t first() const { return policy_.last < 0 ? 0 : std::max<int64_t>(0, steps_ - policy_.last); }
  /// True where the backward pass reaches y₀, so that its dependence on x counts.
  bool whole() const { return first() == 0; }

  /// True where the forward pass should step along a linearization and hand it over.
  bool wants_linearization() const { return policy_.memory == Memory::kGraphs; }
  /// The point before step size(), which becomes the last one.
  void record(const Point& before, std::unique_ptr<Linearization> linearization);
  /// Throws Error out of turn.
  Step take(int64_t t);

 private:
  struct Kept {
    int64_t t;
    Point point;
    std::unique_ptr<Linearization> linearization;
  };
  Kept pop(int64_t t);
  void replay_up_to(int64_t t);

  const RuleSolver& solver_;
  SolveContext context_;
  TrajectoryPolicy policy_;
  int64_t steps_ = 0, every_ = 1;
  int64_t next_ = -1;          // the step that `take` is due for; −1: none taken yet
  std::deque<Kept> kept_;      // in the order of t: every every_-th step
  std::vector<Kept> segment_;  // the steps between two checkpoints, recomputed
};

}  // namespace bilevel
