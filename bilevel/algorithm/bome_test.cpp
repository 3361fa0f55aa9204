#include "bilevel/algorithm/bome.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/algorithm/single_loop_for_tests.h"
#include "bilevel/core/error.h"
#include "bilevel/oracle/counted.h"

namespace bilevel::bome_test {
namespace {

using test::distance;
using test::FiniteSum;
using testing::HasSubstr;

constexpr BomeOptions kOptions{.lr = 0.05, .inner_steps = 10, .outer_lr = 0.05};

// ∇f and ∇ĝap at the state's point, by autograd through the two losses, y^K by K steps of its own.
struct Parts {
  at::Tensor f, gap;  // of (x, y), one after the other
};
Parts parts(const FiniteSum& problem, const State& state, const BomeOptions& options) {
  const at::AutoGradMode grad(true);
  const at::Tensor x = state.tensor("x").detach().clone().requires_grad_(true),
                   y = state.tensor("y").detach().clone().requires_grad_(true);
  at::Tensor solved = y.detach().clone();
  for (int64_t k = 0; k < options.inner_steps; ++k) {
    const at::Tensor leaf = solved.clone().requires_grad_(true);
    problem.inner_loss(x.detach(), leaf, {}).backward();
    solved = solved - *options.lr * leaf.grad();
  }
  const auto gradient = [&](const at::Tensor& loss) {
    x.mutable_grad() = y.mutable_grad() = at::Tensor();
    loss.backward();
    return at::cat({x.grad(), y.grad()}).clone();
  };
  const at::Tensor f = gradient(problem.outer_loss(x, y, {}));
  return {f, gradient(problem.inner_loss(x, y, {}) - problem.inner_loss(x, solved.detach(), {}))};
}

TEST(Bome, GoesAlongTheNearestDirectionToThatOfTheOuterLossInWhichTheGapFalls) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  const Bome bome(oracle, kOptions);
  State state = bome.init();
  int corrected = 0, free = 0;
  for (int64_t t = 0; t < 60; ++t) {
    if (t == 40) {  // the far side of y* from where f is least: there the gap falls by itself
      const at::Tensor y = problem.solution(state.tensor("x")), f_y = oracle.outer(state.tensor("x"), y, {}).y;
      state.set("y", y + 0.5 * f_y);
    }
    const at::Tensor before = at::cat({state.tensor("x"), state.tensor("y")});
    const Parts here = parts(problem, state, kOptions);
    bome.step(state, 1);
    const at::Tensor d = (before - at::cat({state.tensor("x"), state.tensor("y")})) / 0.05;
    const double square = here.gap.dot(here.gap).item<double>(), wanted = 0.5 * square;
    const double plain = here.f.dot(here.gap).item<double>();
    EXPECT_GE(d.dot(here.gap).item<double>(), wanted * (1 - 1e-9) - 1e-13) << t;
    // The projection of ∇f onto the half-space: ∇f itself inside, else on its border along ∇ĝap.
    const at::Tensor projected = plain >= wanted ? here.f : here.f + (wanted - plain) / square * here.gap;
    EXPECT_LT(distance(d, projected), 1e-9 * projected.norm().item<double>()) << t;
    (plain >= wanted ? free : corrected) += 1;
  }
  EXPECT_GT(corrected, 5);
  EXPECT_GT(free, 0);
}

TEST(Bome, ComesNearerToTheSolutionTheShorterItsSteps) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  std::vector<double> norms;
  const double at_start = problem.hypergradient(problem.initial_outer()).norm().item<double>();
  for (const double lr : {0.1, 0.02}) {
    const Bome bome(oracle, {.inner_steps = 5, .outer_lr = lr, .y_lr = lr});
    State state = bome.init();
    bome.step(state, static_cast<int64_t>(50 / lr));
    norms.push_back(problem.hypergradient(state.tensor("x")).norm().item<double>());
    EXPECT_LT(norms.back(), 0.1 * at_start) << lr;
  }
  EXPECT_LT(norms[1], 0.5 * norms[0]);
}

TEST(Bome, AsksForFirstDerivativesAloneAndGoesOnToTheSameBits) {
  const FiniteSum problem;
  const AutodiffOracle autodiff(problem);
  const CountedOracle oracle(autodiff);
  const Bome bome(oracle, kOptions);
  State state = bome.init();
  const Record record = bome.step(state, 3);
  EXPECT_EQ(record.cost.hvps, 0);
  EXPECT_EQ(record.cost.cross_products, 0);
  EXPECT_GT(record.cost.gradients, 3 * 10);
  test::expect_to_go_on(bome, 1, 3);
}

TEST(Bome, SaysWhatIsWrong) {
  const FiniteSum problem;
  const AutodiffOracle oracle(problem);
  for (const auto& [options, word] :
       {std::pair{BomeOptions{.inner_steps = 0}, "steps = 0"}, std::pair{BomeOptions{.eta = 0}, "eta = 0"}}) {
    try {
      Bome{oracle, options};
      ADD_FAILURE() << word;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(word));
    }
  }
}

}  // namespace
}  // namespace bilevel::bome_test
