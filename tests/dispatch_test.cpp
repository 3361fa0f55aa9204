// What a step costs beside its arithmetic, in calls of LibTorch's dispatcher, allocations and products: counted, not timed.
#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>

#include "bilevel/algorithm/saba.h"
#include "bilevel/algorithm/soba.h"
#include "bilevel/core/guards.h"
#include "bilevel/core/stream.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/oracle/native.h"
#include "tasks/supervised.h"

namespace bilevel {
namespace {

struct Calls {
  int64_t dispatches = 0, allocations = 0;
  Calls operator-(const Calls& other) const { return {dispatches - other.dispatches, allocations - other.allocations}; }
};

class Allocations final : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, int64_t bytes, size_t, size_t, c10::Device) override { count += bytes > 0; }
  bool memoryProfilingEnabled() const override { return true; }
  int64_t count = 0;
};

int64_t dispatches = 0;

Calls calls_of(const std::function<void()>& work) {
  const auto allocations = std::make_shared<Allocations>();
  const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, allocations);
  dispatches = 0;
  const auto handle = at::addThreadLocalCallback(at::RecordFunctionCallback([](const at::RecordFunction&) {
                                                   ++dispatches;
                                                   return std::unique_ptr<at::ObserverContext>();
                                                 }).scopes({at::RecordScope::FUNCTION}));
  work();
  at::removeCallback(handle);
  return {dispatches, allocations->count};
}

SupervisedProblem problem_of(const std::string& loss, int64_t outputs, std::vector<Hyperparameter> hyperparameters) {
  Draw draw = Stream(1, "dispatch test").at(0);
  SupervisedData data;
  data.inner = {draw.normal({200, 13}, at::kFloat), draw.integers(outputs, {200})};
  data.outer = {draw.normal({120, 13}, at::kFloat), draw.integers(outputs, {120})};
  SupervisedOptions options;
  options.loss = loss;
  options.hyperparameters = std::move(hyperparameters);
  options.l2 = options.hyperparameters.back().kind == Hyperparameter::Kind::kL2 ? 0.0 : 0.01;
  return {options, data};
}

const Hyperparameter kRidge{
    .kind = Hyperparameter::Kind::kL2, .map = Hyperparameter::Map::kExp, .per = Hyperparameter::Per::kFeature};
const Hyperparameter kWeights{.kind = Hyperparameter::Kind::kSampleWeight};

TEST(Dispatch, AStepOfASingleLoopMethodCallsNothingAndAllocatesNothing) {
  const ThreadsGuard one(1);
  const SupervisedProblem ridge = problem_of("logistic", 2, {kRidge}), weights = problem_of("softmax", 3, {kWeights});
  for (const SupervisedProblem* problem : {&ridge, &weights}) {
    const NativeOracle native(*problem);
    const CountedOracle oracle(native);
    SingleLoopOptions options{.lr = 0.1, .outer_lr = 0.1, .decay = 0.5, .batch = 40, .outer_batch = 40};
    const Soba soba(oracle, options);
    const Saba saba(oracle, options);
    for (const SingleLoop* method : std::initializer_list<const SingleLoop*>{&soba, &saba}) {
      State state = method->init();
      method->step(state, 15);  // 5 inner and 3 outer batches: a new order is drawn at the same steps below
      const Calls few = calls_of([&] { method->step(state, 15); }), many = calls_of([&] { method->step(state, 30); });
      // What is left are the orders of one epoch: 15 steps are 3 of the inner and 5 of the outer samples.
      const Calls orders = calls_of([&] {
        for (int i = 0; i < 3; ++i) Stream(0, "an order").at(i).permutation(5);
        for (int i = 0; i < 5; ++i) Stream(0, "an order").at(i).permutation(3);
      });
      const Calls more = many - few;
      EXPECT_EQ(more.dispatches, orders.dispatches) << method->name();
      EXPECT_EQ(more.allocations, orders.allocations) << method->name();
      EXPECT_EQ(method->step(state, 15).cost.oracle_calls(), 15 * 4);
    }
  }
}

TEST(Dispatch, AnUnrolledStepOfTheNativeOracleCostsAHandfulOfCalls) {
  const ThreadsGuard one(1);
  const SupervisedProblem problem = problem_of("softmax", 3, {kWeights, kRidge});
  const NativeOracle native(problem);
  const CountedOracle oracle(native);
  const Unrolled unrolled;
  const auto hypergradient = [&](int64_t steps) {
    RuleSolverOptions options;
    options.lr = 0.1;
    options.steps = steps;
    const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{}), options);
    const at::Tensor x = problem.initial_outer();
    InnerStart start;
    start.y = problem.initial_inner(x, 0);
    InnerSolution solution = solver.solve(oracle, x, 0, start, unrolled.trajectory());
    EstimatorInput input{oracle, solver, x, solution, {}, {}, {}};
    return unrolled.estimate(input);
  };
  hypergradient(10);
  const Calls few = calls_of([&] { hypergradient(10); }), many = calls_of([&] { hypergradient(30); });
  const Calls each = {(many - few).dispatches / 20, (many - few).allocations / 20};
  RecordProperty("dispatches", static_cast<int>(each.dispatches));
  RecordProperty("allocations", static_cast<int>(each.allocations));
  // There and back: the update of y, and its derivative. 17 and 28 when this was written.
  EXPECT_LE(each.dispatches, 24);
  EXPECT_LE(each.allocations, 36);
  const Cost before = oracle.cost();
  hypergradient(30);
  const Cost spent = oracle.cost() - before;
  EXPECT_EQ(spent.hvps, 30);
  EXPECT_EQ(spent.cross_products, 30);
}

}  // namespace
}  // namespace bilevel
