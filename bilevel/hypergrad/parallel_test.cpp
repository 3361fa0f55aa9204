// Hypergradients of several threads of one process do not meet: no state is shared but the problem, which is read.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <thread>

#include "bilevel/core/guards.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/linear/cg.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel {
namespace {

using namespace testing;

TEST(Parallel, EightHypergradientsAtOnceAreTheSequentialOnesBitForBit) {
  const MlpProblem problem({.features = 12, .hidden = 40, .inner_samples = 120, .outer_samples = 60});
  PlainRule rule;
  rule.kind = PlainRule::Kind::kAdam;
  const RuleSolver solver = rule_solver(rule, 25);
  const Implicit implicit(std::make_unique<Cg>(CgOptions{.iterations = 10, .damping = 1.0}));
  const Unrolled unrolled;
  constexpr size_t kThreads = 8;
  const ThreadsGuard one(1);
  const auto work = [&](size_t i) {
    at::set_num_threads(1);  // of this thread; a guard's end would give back what belongs to the process
    const at::Tensor x = problem.initial_outer() + 0.05 * static_cast<double>(i);
    return std::pair(estimate(implicit, problem, solver, x), estimate(unrolled, problem, solver, x));
  };

  std::vector<std::pair<Hypergradient, Hypergradient>> sequential(kThreads), parallel(kThreads);
  for (size_t i = 0; i < kThreads; ++i) sequential[i] = work(i);
  for (int round = 0; round < 3; ++round) {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < kThreads; ++i) threads.emplace_back([&, i] { parallel[i] = work(i); });
    for (auto& thread : threads) thread.join();
    for (size_t i = 0; i < kThreads; ++i) {
      EXPECT_TRUE(at::equal(parallel[i].first.value, sequential[i].first.value)) << "implicit, thread " << i;
      EXPECT_TRUE(at::equal(parallel[i].second.value, sequential[i].second.value)) << "unrolled, thread " << i;
      EXPECT_EQ(parallel[i].first.message, sequential[i].first.message);
    }
  }
  // Eight different questions, and two different answers to each.
  EXPECT_GT(relative_error(sequential[0].first.value, sequential[7].first.value), 1e-3);
  EXPECT_GT(relative_error(sequential[0].first.value, sequential[0].second.value), 1e-3);
}

}  // namespace
}  // namespace bilevel
