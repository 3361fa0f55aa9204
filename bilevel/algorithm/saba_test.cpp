#include "bilevel/algorithm/saba.h"

#include <gtest/gtest.h>

#include <map>

#include "bilevel/algorithm/single_loop_for_tests.h"
#include "bilevel/algorithm/soba.h"

namespace bilevel::saba_test {
namespace {

using test::distance;
using test::FiniteSum;

constexpr SingleLoopOptions kDrawn{.lr = 0.1, .outer_lr = 0.1, .decay = 0, .batch = 4, .outer_batch = 6, .seed = 2};

TEST(Saba, ConvergesToTheSolutionWithStepsThatLeaveSobaInItsNoise) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  const Saba saba(oracle, kDrawn);
  const Soba soba(oracle, kDrawn);
  State reduced = saba.init(), noisy = soba.init();
  saba.step(reduced, 4000);
  soba.step(noisy, 4000);
  const at::Tensor x = reduced.tensor("x"), y = problem.solution(x);
  EXPECT_LT(problem.hypergradient(x).norm().item<double>(), 1e-9);
  EXPECT_LT(distance(reduced.tensor("y"), y), 1e-9);
  EXPECT_LT(distance(reduced.tensor("q"), problem.adjoint(y)), 1e-9);
  EXPECT_GT(problem.hypergradient(noisy.tensor("x")).norm().item<double>(), 1e-3);
}

TEST(Saba, ItsVarianceVanishesAtTheSolution) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  const Saba saba(oracle, kDrawn);
  const Soba soba(oracle, kDrawn);
  State state = saba.init();
  saba.step(state, 4000);
  // From there, one step with each batch: how far it goes.
  double reduced = 0, plain = 0;
  for (int64_t t = 4000; t < 4012; ++t) {
    for (const SingleLoop* method : std::initializer_list<const SingleLoop*>{&saba, &soba}) {
      State moved = state.clone();
      moved.set("step", t);
      method->step(moved, 1);
      double& far = method == &saba ? reduced : plain;
      for (const char* name : {"x", "y", "q"}) far = std::max(far, distance(moved.tensor(name), state.tensor(name)));
    }
  }
  EXPECT_LT(reduced, 1e-8);
  EXPECT_GT(plain, 1e-2);
}

TEST(Saba, TakesTheStepOfSagaOnEachQuantity) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  const Saba saba(oracle, kDrawn);
  const Partition inner(FiniteSum::kInner, 4, Stream(2, "inner batches")),
      outer(FiniteSum::kOuter, 6, Stream(2, "outer batches"));
  State state = test::somewhere(saba);
  std::map<int64_t, at::Tensor> of_inner, of_outer;  // by batch; absent: zero
  const auto saga = [](std::map<int64_t, at::Tensor>& memory, int64_t k, int64_t count, const at::Tensor& now) {
    at::Tensor mean = at::zeros_like(now);
    for (const auto& [number, row] : memory) mean = mean + row / static_cast<double>(count);
    const at::Tensor direction = now + mean - (memory.contains(k) ? memory[k] : at::zeros_like(now));
    memory[k] = now;
    return direction;
  };
  for (int64_t t = 0; t < 15; ++t) {
    const int64_t i = inner.number(t), j = outer.number(t);
    const test::Quantities d = test::quantities(oracle, state, inner.samples(i), outer.samples(j));
    const at::Tensor D = saga(of_inner, i, inner.count(), inner.weight(i) * at::cat({d.r, d.Hq, d.cross})),
                     E = saga(of_outer, j, outer.count(), outer.weight(j) * at::cat({d.f_y, d.f_x}));
    const State before = state.clone();
    saba.step(state, 1);
    test::expect_step(before, D, E, state, 1e-13, t);
  }
}

TEST(Saba, RemembersTheFullGradientsAfterAnEpochWithoutMoving) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  SingleLoopOptions still = kDrawn;
  still.lr = still.outer_lr = 1e-300;
  const Saba saba(oracle, still);
  State state = test::somewhere(saba);
  saba.step(state, 12);
  const test::Quantities all = test::quantities(oracle, state, {}, {});
  EXPECT_LT(distance(state.tensor("saba.inner_mean"), at::cat({all.r, all.Hq, all.cross})), 1e-13);
  EXPECT_LT(distance(state.tensor("saba.outer_mean"), at::cat({all.f_y, all.f_x})), 1e-13);
}

TEST(Saba, GoesOnFromACopyOfItsStateToTheSameBits) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  test::expect_to_go_on(Saba(oracle, kDrawn), 9, 20);
}

}  // namespace
}  // namespace bilevel::saba_test
