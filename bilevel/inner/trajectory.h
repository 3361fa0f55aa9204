#pragma once
#include <cstdint>
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

/// One step as the backward pass needs it.
struct Step {
  RuleInput input;
  std::unique_ptr<Linearization> linearization;  // of the loss at y_t and batch t
};

class RuleSolver;

/// The steps first()…size()−1 of a solve. `take` is called for t = size()−1 down to first(), once each, and gives up what is no
/// longer needed.
class Trajectory {
 public:
  Trajectory(const RuleSolver& solver, const Oracle& oracle, at::Tensor x, int64_t slice, int64_t steps, TrajectoryPolicy policy);

  int64_t size() const { return steps_; }
  int64_t first() const { return first_; }
  /// True where the backward pass reaches y₀, so that its dependence on x counts.
  bool whole() const { return first_ == 0; }

  void record(int64_t t, const Point& before, std::unique_ptr<Linearization> linearization);
  Step take(int64_t t);

 private:
  bool keeps_point(int64_t t) const;
  const RuleSolver& solver_;
  const Oracle& oracle_;
  at::Tensor x_;
  int64_t slice_, steps_, first_, every_ = 1;
  TrajectoryPolicy policy_;
  std::vector<std::unique_ptr<Linearization>> graphs_;
  std::vector<Point> points_;   // index t − first, empty where not kept
  friend class RuleSolver;
};

}  // namespace bilevel
