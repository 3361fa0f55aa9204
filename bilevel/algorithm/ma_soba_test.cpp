#include "bilevel/algorithm/ma_soba.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "bilevel/algorithm/single_loop_for_tests.h"
#include "bilevel/algorithm/soba.h"
#include "bilevel/core/error.h"

namespace bilevel::ma_soba_test {
namespace {

using test::distance;
using test::FiniteSum;

MaSobaOptions with(double averaging, double decay, int64_t batch) {
  MaSobaOptions options;
  options.lr = 0.1;
  options.outer_lr = 0.1;
  options.decay = decay;
  options.batch = options.outer_batch = batch;
  options.averaging = averaging;
  return options;
}

TEST(MaSoba, RestsAtTheSolutionOfTheBilevelProblemWithFullBatches) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  const MaSoba method(oracle, with(0.3, 0, 0));
  State state = method.init();
  const double at_start = problem.hypergradient(state.tensor("x")).norm().item<double>();
  method.step(state, 5000);
  const at::Tensor x = state.tensor("x"), y = problem.solution(x);
  EXPECT_LT(problem.hypergradient(x).norm().item<double>(), 1e-9 * at_start);
  EXPECT_LT(distance(state.tensor("y"), y), 1e-9);
  EXPECT_LT(distance(state.tensor("q"), problem.adjoint(y)), 1e-9);
}

TEST(MaSoba, MovesXAlongTheMeanOfItsDirectionsAndTheOthersAsSoba) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  const MaSoba method(oracle, with(0.2, 0.5, 4));
  const Soba soba(oracle, with(0.2, 0.5, 4));
  State state = test::somewhere(method);
  at::Tensor mean = at::zeros_like(state.tensor("x"));
  for (int64_t t = 0; t < 7; ++t) {
    State plain = state.clone();
    soba.step(plain, 1);
    const double step = 0.1 / std::sqrt(static_cast<double>(t + 1));
    mean = 0.8 * mean + 0.2 * (state.tensor("x") - plain.tensor("x")) / step;
    const at::Tensor expected = state.tensor("x") - step * mean;
    method.step(state, 1);
    EXPECT_LT(distance(state.tensor("x"), expected), 1e-13) << t;
    EXPECT_GT(distance(state.tensor("x"), plain.tensor("x")), 1e-3 * step) << t;
    EXPECT_LT(distance(state.tensor("y"), plain.tensor("y")), 1e-14) << t;
    EXPECT_LT(distance(state.tensor("q"), plain.tensor("q")), 1e-14) << t;
  }
}

TEST(MaSoba, GoesOnFromAStateInTheMiddleToTheSameBits) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  test::expect_to_go_on(MaSoba(oracle, with(0.2, 0.5, 4)), 4, 9);
}

TEST(MaSoba, RefusesAShareThatIsNone) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  for (const double share : {0.0, 1.5}) {
    try {
      MaSoba{oracle, with(share, 0, 0)};
      ADD_FAILURE() << share;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("averaging = "));
    }
  }
}

}  // namespace
}  // namespace bilevel::ma_soba_test
