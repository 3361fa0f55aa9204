#include "bilevel/oracle/micro_batch.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <memory>

#include "bilevel/core/error.h"
#include "bilevel/core/memory_meter.h"
#include "bilevel/core/stream.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel {
namespace {

void expect_same(const at::Tensor& split, const at::Tensor& whole, const char* what) {
  EXPECT_LE((split - whole).norm().item<double>(), 1e-12 * whole.norm().item<double>()) << what;
  EXPECT_GT(whole.norm().item<double>(), 0.0) << what;
}

TEST(MicroBatchOracle, GivesTheWholeBatchsNumbersForAnySize) {
  const RidgeProblem ridge;
  const LogisticWeightsProblem logistic;
  const MlpProblem mlp;
  for (const Problem* problem :
       {static_cast<const Problem*>(&ridge), static_cast<const Problem*>(&logistic), static_cast<const Problem*>(&mlp)}) {
    const AutodiffOracle whole(*problem);
    const at::Tensor x = problem->initial_outer();
    const at::Tensor y = problem->initial_inner(x, 0) + 0.3 * Stream(1, "y").at(0).normal({problem->inner_layout().size()});
    const at::Tensor v = Stream(1, "v").at(0).normal({3, y.size(0)}), u = Stream(1, "u").at(0).normal({2, x.size(0)});
    Batch some;  // a minibatch is split too
    some.samples = at::tensor({3, 1, 4, 1, 5, 9, 2, 6, 11}, at::kLong);
    for (const Batch& batch : {Batch{}, some}) {
      for (const int64_t size : {1, 4, 7}) {  // the last part is a smaller one
        const MicroBatchOracle split(whole, size);
        const auto a = split.linearize_inner(x, y, batch), b = whole.linearize_inner(x, y, batch);
        expect_same(a->value(), b->value(), "value");
        expect_same(a->residual(), b->residual(), "residual");
        expect_same(a->grad_x(), b->grad_x(), "∂x g");
        expect_same(a->jvp_y(v), b->jvp_y(v), "H v");
        expect_same(a->jvp_y(v[0]), b->jvp_y(v[0]), "H v, one direction");
        expect_same(a->vjp(v).y, b->vjp(v).y, "(∂y r)ᵀ w");
        expect_same(a->vjp(v).x, b->vjp(v).x, "(∂x r)ᵀ w");
        expect_same(a->jvp_x(u), b->jvp_x(u), "∂x r u");
        expect_same(a->gauss_newton(v), b->gauss_newton(v), "Gauss–Newton");
        expect_same(split.inner(x, y, batch).y, whole.inner(x, y, batch).y, "∂y g");
        expect_same(split.outer(x, y, batch).y, whole.outer(x, y, batch).y, "∂y f");
        expect_same(split.inner_grad_x(x, y, batch), whole.inner_grad_x(x, y, batch), "∂x g");
        expect_same(split.inner_value(x, y, batch), whole.inner_value(x, y, batch), "g");
        expect_same(split.outer_value(x, y, batch), whole.outer_value(x, y, batch), "f");
        if (problem != &ridge) expect_same(split.outer(x, y, batch).x, whole.outer(x, y, batch).x, "∂x f");
      }
    }
  }
}

TEST(MicroBatchOracle, TakesTheMemoryOfOneMicroBatch) {
  const MlpProblem problem({.features = 20, .hidden = 30, .inner_samples = 2000});
  const AutodiffOracle whole(problem);
  const MicroBatchOracle split(whole, 100);
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0);
  const auto peak = [&](const Oracle& oracle) {
    const MemoryMeter meter;
    oracle.linearize_inner(x, y, Batch{})->vjp(y);
    return static_cast<double>(meter.peak_bytes());
  };
  EXPECT_LT(peak(split), 0.15 * peak(whole));
}

TEST(MicroBatchOracle, AsksOncePerPartAndPassesSmallBatchesOn) {
  const RidgeProblem problem;  // 30 inner samples
  const AutodiffOracle first_order(problem);
  const CountedOracle counted(first_order);
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0);
  MicroBatchOracle(counted, 12).inner(x, y, Batch{});
  EXPECT_EQ(counted.cost().gradients, 3);
  MicroBatchOracle(counted, 30).inner(x, y, Batch{});
  EXPECT_EQ(counted.cost().gradients, 4);
  const auto linearization = MicroBatchOracle(counted, 12).linearize_inner(x, y, Batch{});
  EXPECT_EQ(counted.cost().gradients, 7);
  linearization->jvp_y(at::ones({5, y.size(0)}, at::kDouble));
  EXPECT_EQ(counted.cost().gradients, 10);
  EXPECT_EQ(counted.cost().hvps, 15);
  EXPECT_THROW(MicroBatchOracle(counted, 0), Error);
}

}  // namespace
}  // namespace bilevel
