#pragma once
#include <algorithm>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "bilevel/inner/update_rule.h"
#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// What is kept of an inner solve so that it can be gone through backwards.
enum class Memory {
  kGraphs,       // each step's linearization: fastest, memory ∝ T graphs
  kStates,       // each step's (y, s): memory ∝ T vectors, one more linearization a step
  kCheckpoints,  // every √T-th (y, s): memory ∝ √T vectors, one more solve; or as many as a number or a budget allows
};

class Follower;

struct TrajectoryPolicy {
  bool keep = false;
  Memory memory = Memory::kGraphs;
  int64_t last = -1;  // keep the last so many steps only; −1: all
  /// At most so many checkpoints; 0: √T and the points between two of them. One holds the start alone, for going through the
  /// solve once more.
  int64_t slots = 0;
  /// Bytes for everything that the solve and the way back allocate. Graphs are kept where all of them fit, else states where all
  /// of them do, else as many checkpoints as do. 0: no budget.
  int64_t budget = 0;
  /// False: a solve of a fixed number of steps takes no gradient at y_T for the sake of InnerSolution::loss and stationarity
  /// alone. They are then those of its last step, at y_{T−1} and on that step's batch.
  bool look_at_end = true;
  /// Is shown the last so many steps when they are taken, where T is known beforehand; null: nobody is.
  std::shared_ptr<Follower> follower = nullptr;
};

/// (y_t, s_t) and the number of steps since s was fresh.
struct Point {
  at::Tensor y;
  Tensors state;
  int64_t t = 0;
};

/// Who works along with a solve.
class Follower {
 public:
  virtual ~Follower() = default;
  /// The point before step t, and that step's batch. Called in the order of t, on the thread of the solve.
  virtual void see(const Point& before, const Batch& batch, int64_t t) = 0;
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
///
/// A number of checkpoints is used as Griewank & Walther's revolve does (ACM TOMS 26, 2000), with the fewest steps recomputed
/// where T is known beforehand; where a tolerance may end the solve, the checkpoints are spread evenly on the way and the gaps
/// between them gone through by the same scheme. A budget is metered on one step and its derivatives at y₀(x), before the solve.
class Trajectory {
 public:
  /// `most_steps` bounds the steps that will be recorded; the places of checkpoints follow from it. Throws Error for a budget
  /// that not even one checkpoint fits into, saying how much is needed.
  Trajectory(const RuleSolver& solver, SolveContext context, TrajectoryPolicy policy, int64_t most_steps);

  int64_t size() const { return steps_; }
  int64_t first() const;
  /// True where the backward pass reaches y₀, so that its dependence on x counts.
  bool whole() const { return first() == 0; }
  const SolveContext& context() const { return context_; }
  /// What is kept, after a budget was divided up: kGraphs, kStates or kCheckpoints.
  Memory memory() const { return policy_.memory; }
  /// The point that the solve began at; throws Error where it was not kept.
  const Point& start() const;

  /// True where the forward pass should step along a linearization and hand it over.
  bool wants_linearization() const { return policy_.memory == Memory::kGraphs; }
  /// The point before step size(), which becomes the last one.
  void record(const Point& before, std::unique_ptr<Linearization> linearization);
  /// Throws Error out of turn.
  Step take(int64_t t);
  /// As `take`, for who wants no derivatives: the point before step t.
  Point take_point(int64_t t);
  /// The batch of step t.
  Batch batch(int64_t t) const;
  const std::shared_ptr<Follower>& follower() const { return policy_.follower; }
  /// What the last step depended on, at the price of its gradient: no derivative of second order is taken.
  RuleInput last_input() const;

 private:
  struct Kept {
    int64_t t;
    Point point;
    std::unique_ptr<Linearization> linearization;
  };
  void divide_budget(int64_t steps);
  void record_in_slots(const Point& before, int64_t t);
  Kept due(int64_t t);
  Kept pop(int64_t t);
  Kept pop_from_slots(int64_t t);
  void replay_up_to(int64_t t);

  const RuleSolver& solver_;
  SolveContext context_;
  TrajectoryPolicy policy_;
  int64_t steps_ = 0, every_ = 1;
  int64_t known_steps_ = -1;      // T, where nothing but T ends the solve
  int64_t next_checkpoint_ = 0;   // with slots and known T: where the next one is due
  int64_t next_ = -1;             // the step that `take` is due for; −1: none taken yet
  std::deque<Kept> kept_;         // in the order of t: every every_-th step, or what is in the slots
  std::vector<Kept> segment_;     // the steps between two checkpoints, recomputed
  std::optional<Point> current_;  // with slots: the point before the last step
};

/// With c checkpoints, one of them at the first of l ≥ 2 steps, how many steps after it the next one should be, so that the
/// fewest steps are taken again on the way back.
int64_t next_checkpoint(int64_t steps, int64_t checkpoints);

}  // namespace bilevel
