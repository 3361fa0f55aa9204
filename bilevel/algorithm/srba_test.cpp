#include "bilevel/algorithm/srba.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/algorithm/single_loop_for_tests.h"
#include "bilevel/algorithm/soba.h"
#include "bilevel/core/error.h"

namespace bilevel::srba_test {
namespace {

using test::distance;
using test::FiniteSum;

SrbaOptions with(int64_t batch, int64_t outer_batch, int64_t period) {
  SrbaOptions options;
  options.lr = options.outer_lr = 0.1;
  options.batch = batch;
  options.outer_batch = outer_batch;
  options.seed = 2;
  options.period = period;
  return options;
}

TEST(Srba, ConvergesToTheSolutionWithStepsThatLeaveSobaInItsNoise) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  const Srba srba(oracle, with(4, 6, 0));
  State state = srba.init();
  srba.step(state, 4000);
  const at::Tensor x = state.tensor("x"), y = problem.solution(x);
  EXPECT_LT(problem.hypergradient(x).norm().item<double>(), 1e-9);
  EXPECT_LT(distance(state.tensor("y"), y), 1e-9);
  EXPECT_LT(distance(state.tensor("q"), problem.adjoint(y)), 1e-9);
}

TEST(Srba, GoesOnByTheDifferenceOfTwoPointsAndBeginsAnewWithAllSamples) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  const Srba srba(oracle, with(4, 6, 5));
  const Partition inner(FiniteSum::kInner, 4, Stream(2, "inner batches")),
      outer(FiniteSum::kOuter, 6, Stream(2, "outer batches"));
  State state = test::somewhere(srba), before = state.clone();
  at::Tensor D, E;
  for (int64_t t = 0; t < 13; ++t) {
    const int64_t i = inner.number(t), j = outer.number(t);
    const auto at_point = [&](const State& point, bool all) {
      const test::Quantities d =
          test::quantities(oracle, point, all ? at::Tensor() : inner.samples(i), all ? at::Tensor() : outer.samples(j));
      return std::pair{(all ? 1.0 : inner.weight(i)) * at::cat({d.r, d.Hq, d.cross}),
                       (all ? 1.0 : outer.weight(j)) * at::cat({d.f_y, d.f_x})};
    };
    const auto [now_inner, now_outer] = at_point(state, t % 5 == 0);
    if (t % 5 == 0) {
      D = now_inner;
      E = now_outer;
    } else {
      const auto [then_inner, then_outer] = at_point(before, false);
      D = D + now_inner - then_inner;
      E = E + now_outer - then_outer;
    }
    before = state.clone();
    srba.step(state, 1);
    test::expect_step(before, D, E, state, 1e-12, t);
  }
}

TEST(Srba, IsSobaWithConstantStepsWhereEachBatchIsAllSamples) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  SingleLoopOptions plain = with(0, 0, 0);
  const Soba soba(oracle, plain);
  const Srba srba(oracle, with(0, 0, 0)), rare(oracle, with(0, 0, 7));
  State one = soba.init(), other = srba.init(), third = rare.init();
  soba.step(one, 20);
  srba.step(other, 20);
  rare.step(third, 20);
  for (const char* name : {"x", "y", "q"}) {
    EXPECT_TRUE(at::equal(one.tensor(name), other.tensor(name))) << name;
    EXPECT_LT(distance(one.tensor(name), third.tensor(name)), 1e-12) << name;
  }
}

TEST(Srba, GoesOnFromAStateInTheMiddleOfAPeriodToTheSameBits) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  test::expect_to_go_on(Srba(oracle, with(4, 6, 6)), 4, 11);
  EXPECT_THROW(Srba(oracle, with(4, 6, -1)), Error);
}

}  // namespace
}  // namespace bilevel::srba_test
