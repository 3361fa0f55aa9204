#pragma once
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bilevel/algorithm/double_loop.h"
#include "bilevel/core/config.h"
#include "bilevel/core/stream.h"
#include "bilevel/oracle/counted.h"

namespace bilevel {

/// What the hyperparameters u of a copied member, scaled to [0, 1], are multiplied by.
enum class Mutation {
  kTeacher,  // α = 1 + tanh(W softmax(Vᵀu)), learned
  kRandom,   // 0.8 or 1.2, as in population-based training
};

struct HpmOptions {
  int64_t members = 20;       // as published
  int64_t exploit_every = 5;  // steps; 0: never. Exploiting at every step soon leaves one family, in one basin
  double truncation = 0.2;    // the share at each end: the worst copy the best
  Mutation mutation = Mutation::kTeacher;
  int64_t slots = 8;         // M, columns of V and W
  double teacher_lr = 0.05;  // of Adam on V and W
  uint64_t seed = 0;         // of starting points, pairs and mutations
  std::vector<std::string> violations() const;
};
/// Keys members, exploit_every, truncation, mutation = "teacher" | "random", slots, teacher_lr.
void read(Section& section, HpmOptions& options);

/// Who copies whom, the worst first: each of the worst `share` of all takes one of the best `share`, no two the same. A loss
/// that is not finite is the worst. At least one copies, and at most every other.
std::vector<std::pair<int64_t, int64_t>> truncation_selection(const std::vector<double>& losses, double share, Draw draw);

/// α(u) = 1 + tanh(W softmax(Vᵀu)) [dx] for φ = (V, W), each [dx, M] row by row, all in double.
at::Tensor teacher_factors(const at::Tensor& phi, const at::Tensor& u);
/// (∂α/∂φ)ᵀ ᾱ [2 dx M], u held fixed.
at::Tensor teacher_gradient(const at::Tensor& phi, const at::Tensor& u, const at::Tensor& alpha_bar);

/// An estimator that gives zero without a call of the oracle but for f: with it a double loop trains y and leaves x where it is.
std::shared_ptr<const Estimator> no_hypergradient();

/// A population of double loops, each with x, y and all else of its own, in the box that the constraints on x give (Tao et al.
/// 2020, "Learning to mutate with a hypergradient guided population").
///
/// Each step is one of every member. After every `exploit_every` of them the worst copy the best wholly, with all that their
/// State holds, and mutate: x = lower + (upper − lower) u, u ← min(α ⊙ u, 1). The next hypergradient of a member that has
/// mutated is also what the teacher learns from, by a step of Adam along the mean over these members of
///
///     Σ_i (dF/dx)_i (upper − lower)_i u_i ∂α_i/∂φ,
///
/// u that of the copied member and held fixed, without the i that were cut off at 1: so the teacher takes no calls of the oracle.
/// With `no_hypergradient` and random mutations it is population-based training (Jaderberg et al. 2017), without exploiting as
/// well it is random search; one member is a double loop.
///
/// Member 0 starts at the problem's x₀, the others uniformly in the box. All have the seeds, hence the batches, of their double
/// loops. They run in as many threads as LibTorch is given (`at::get_num_threads`), each by one: the number changes no bit.
/// Losses that draw from LibTorch's generators are run one member after the other, for the generators belong to the process.
///
/// State: `member.i.…`, what the double loop of member i holds; `teacher.…`; x and y are those of the best member of the last
/// step, which is also what records describe, with metrics `best_member` and `median_outer_loss`. A member that fails ranks
/// last; the step fails where all do. `outer_scale` and `damping` go to every member.
class Hpm final : public Algorithm {
 public:
  using MemberMaker = std::function<std::unique_ptr<const DoubleLoop>(const Oracle& oracle)>;
  /// Keeps a reference to `oracle`, and makes a double loop for each member. Throws Error where a part of x has no box with two
  /// finite sides.
  Hpm(const Oracle& oracle, const MemberMaker& make, HpmOptions options, std::string name = "hpm");

  std::string_view name() const override { return name_; }
  State init() const override;
  Record step(State& state, int64_t n) const override;
  Record evaluate(State& state) const override;
  const DoubleLoop& member() const { return *loops_.front(); }

 private:
  struct Population;
  struct Round;
  using Visit = std::function<Record(const DoubleLoop& loop, State& member, Hypergradient& taken)>;
  Round visit(Population& population, const Visit& one) const;
  void learn(Population& population, const Round& round) const;
  void exploit(Population& population, const Round& round, int64_t step) const;
  bool learns() const { return options_.mutation == Mutation::kTeacher && options_.exploit_every > 0 && options_.members > 1; }

  const Oracle& oracle_;
  HpmOptions options_;
  std::string name_;
  at::Tensor lower_, width_;  // of the box [dx], as x
  std::vector<std::unique_ptr<CountedOracle>> oracles_;
  std::vector<std::unique_ptr<const DoubleLoop>> loops_;
};

}  // namespace bilevel
