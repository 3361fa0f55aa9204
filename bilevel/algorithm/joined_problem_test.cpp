// Tasks joined into one problem, against the same tasks one by one in the double loop.
#include "bilevel/problem/joined_problem.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "bilevel/algorithm/double_loop.h"
#include "bilevel/core/error.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/inner/registry.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/outer/registry.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel {
namespace {

// The losses task by task: what is tested is the joining.
JoinedProblem::Losses each(const Problem& base, bool inner) {
  return [&base, inner](const at::Tensor& x, const at::Tensor& Y) {
    std::vector<at::Tensor> losses;
    for (int64_t s = 0; s < Y.size(0); ++s) {
      Batch batch;
      batch.slice = s;
      losses.push_back(inner ? base.inner_loss(x, Y[s], batch) : base.outer_loss(x, Y[s], batch));
    }
    return at::stack(losses);
  };
}

Hypergradient hypergradient(const Oracle& oracle, const std::string& toml) {
  Section root = Config::parse(toml, "test.toml").root();
  Section inner = root.section("inner"), options = root.section("hypergradient"), outer = root.section("outer");
  std::string estimator;
  options.read("estimator", estimator);
  const Problem& problem = oracle.problem();
  DoubleLoopOptions loop;
  loop.start = Start::kCold;
  const DoubleLoop algorithm(oracle, make_inner_solver(inner, problem, problem.initial_outer(), 0, {}),
                             make_estimator(estimator, options), make_outer_optimizer("sgd", outer), loop);
  return algorithm.hypergradient(algorithm.init());
}

TEST(JoinedProblem, HasTheHypergradientOfItsTasksOneByOne) {
  for (const auto& [rho, toml] : std::vector<std::pair<double, std::string>>{
           {0.0, "inner = { rule = \"sgd\", lr = 0.05, steps = 5 }\nhypergradient = { estimator = \"unrolled\" }"},
           {0.0,
            "inner = { rule = \"sgd\", momentum = 0.9, lr = 0.02, steps = 6 }\nhypergradient = { estimator = \"unrolled\", "
            "memory = \"states\" }"},
           {0.0, "inner = { rule = \"adam\", lr = 0.02, steps = 4 }\nhypergradient = { estimator = \"unrolled\" }"},
           {4.0,
            "inner = { rule = \"sgd\", lr = 0.05, steps = 40 }\nhypergradient = { estimator = \"implicit\", solver = \"dense\" "
            "}"}}) {
    const SinusoidMamlProblem tasks({.proximity = rho});
    const JoinedProblem joined(tasks, each(tasks, true), each(tasks, false));
    const AutodiffOracle first_order(tasks), first_order_joined(joined);
    const CountedOracle apart(first_order), together(first_order_joined);
    const Hypergradient a = hypergradient(apart, toml), b = hypergradient(together, toml);
    const double size = a.value.norm().item<double>();
    EXPECT_GT(size, 1e-3);
    EXPECT_LT((a.value - b.value).norm().item<double>(), 1e-11 * size) << toml;
    EXPECT_NEAR(a.outer_loss, b.outer_loss, 1e-12);
    // The point of it: a quarter of the calls for four tasks.
    EXPECT_EQ(apart.cost().gradients, 4 * together.cost().gradients) << toml;
  }
}

TEST(JoinedProblem, RefusesLossesOfAnotherNumberOfTasks) {
  const SinusoidMamlProblem tasks;
  const JoinedProblem joined(
      tasks, [](const at::Tensor&, const at::Tensor& Y) { return Y.square().sum(); }, each(tasks, false));
  const at::Tensor x = joined.initial_outer();
  EXPECT_THROW(joined.inner_loss(x, joined.initial_inner(x, 0), {}), Error);
  const QuadraticProblem quadratic;
  const LearnedRuleProblem learned(quadratic, 0.1);
  EXPECT_THROW(JoinedProblem(learned, each(learned, true), each(learned, false)), Error);
  EXPECT_THROW(JoinedProblem(tasks, {}, each(tasks, false)), Error);
}

}  // namespace
}  // namespace bilevel
