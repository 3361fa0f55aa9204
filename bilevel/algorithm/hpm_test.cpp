#include "bilevel/algorithm/hpm.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>

#include "bilevel/algorithm/single_loop_for_tests.h"
#include "bilevel/core/error.h"
#include "bilevel/core/guards.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/outer/adam.h"
#include "bilevel/outer/sgd.h"

namespace bilevel::hpm_test {
namespace {

using test::distance;
using test::FiniteSum;

/// FiniteSum with x in a box that leaves 0 aside.
class Boxed final : public Problem {
 public:
  explicit Boxed(double lower = -2, double upper = 3) : box_(Constraint::box(lower, upper)) {}
  const Layout& outer_layout() const override { return sum_.outer_layout(); }
  const Layout& inner_layout() const override { return sum_.inner_layout(); }
  int64_t inner_samples() const override { return FiniteSum::kInner; }
  int64_t outer_samples() const override { return FiniteSum::kOuter; }
  at::Tensor initial_outer() const override { return sum_.initial_outer(); }
  at::Tensor initial_inner(const at::Tensor& x, int64_t s) const override { return sum_.initial_inner(x, s); }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return sum_.inner_loss(x, y, batch);
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return sum_.outer_loss(x, y, batch);
  }
  std::vector<Constraint> outer_constraints() const override { return {box_}; }
  std::map<std::string, double> metrics(const at::Tensor& x, const at::Tensor&) const override {
    return {{"first_x", x[0].item<double>()}};
  }

 private:
  FiniteSum sum_;
  Constraint box_;
};

struct Kind {
  bool gradient = true;
  double outer_lr = 0.02;
  bool adam = false;
};

/// Five steps of gradient descent with momentum on batches of 6, all that it carries over, carried over.
std::unique_ptr<DoubleLoop> loop(const Oracle& oracle, const Kind& kind) {
  RuleSolverOptions options;
  options.steps = 5;
  options.lr = 0.1;
  options.carry_state = true;
  DoubleLoopOptions of_loop;
  of_loop.carry_rule_state = true;
  std::shared_ptr<const Estimator> estimator = no_hypergradient();
  if (kind.gradient) estimator = std::make_shared<Unrolled>();
  std::shared_ptr<const OuterOptimizer> outer = std::make_shared<OuterSgd>(OuterSgdOptions{.lr = kind.outer_lr});
  if (kind.adam) outer = std::make_shared<OuterAdam>(OuterAdamOptions{.lr = kind.outer_lr});
  return std::make_unique<DoubleLoop>(
      oracle,
      std::make_shared<RuleSolver>(std::make_unique<SgdRule>(SgdRuleOptions{.momentum = 0.5}), options,
                                   BatchPlan::shuffled(FiniteSum::kInner, 6, Stream(1, "batches"))),
      estimator, outer, of_loop);
}

Hpm population(const Oracle& oracle, const HpmOptions& options, const Kind& kind = {}) {
  return {oracle, [&](const Oracle& own) { return loop(own, kind); }, options};
}

HpmOptions small(Mutation mutation = Mutation::kTeacher) {
  return {.members = 6, .exploit_every = 2, .truncation = 0.34, .mutation = mutation, .slots = 3, .teacher_lr = 0.05, .seed = 4};
}

bool is_private(const std::string& name) { return name.starts_with("member.") || name.starts_with("teacher."); }

/// Equal bit for bit, whatever passes `of_interest`.
void expect_equal(const State& a, const State& b, const std::function<bool(const std::string&)>& of_interest = is_private) {
  int64_t compared = 0;
  for (const auto& [name, value] : a.values()) {
    if (!of_interest(name)) continue;
    ASSERT_TRUE(b.has(name)) << name;
    ++compared;
    if (const auto* tensor = std::get_if<at::Tensor>(&value)) {
      EXPECT_TRUE(at::equal(*tensor, b.tensor(name))) << name;
    } else {
      EXPECT_TRUE(value.index() == b.values().at(name).index()) << name;
    }
  }
  EXPECT_GT(compared, 0);
}

at::Tensor xs(const State& state, int64_t members) {
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < members; ++i) rows.push_back(state.tensor(fmt::format("member.{}.x", i)));
  return at::stack(rows);
}

TEST(Hpm, OneMemberIsADoubleLoopBitForBit) {
  const Boxed problem;
  const AutodiffOracle oracle(problem);
  const ThreadsGuard one(1);
  const Hpm hpm = population(oracle, {.members = 1});
  const auto alone = loop(oracle, {});
  State a = hpm.init(), b = alone->init();
  for (int64_t k = 0; k < 12; ++k) {
    const Record of_a = hpm.step(a, 1), of_b = alone->step(b, 1);
    EXPECT_EQ(of_a.outer_loss, of_b.outer_loss);
    EXPECT_EQ(of_a.hypergradient_norm, of_b.hypergradient_norm);
  }
  EXPECT_TRUE(at::equal(a.tensor("x"), b.tensor("x")) && at::equal(a.tensor("y"), b.tensor("y")));
  EXPECT_GT(distance(a.tensor("x"), problem.initial_outer()), 0.1);
}

TEST(Hpm, WithoutExploitingIsIndependentRuns) {
  const Boxed problem;
  const AutodiffOracle oracle(problem);
  const ThreadsGuard one(1);
  HpmOptions options = small();
  options.exploit_every = 0;
  const Hpm hpm = population(oracle, options);
  State state = hpm.init();
  const at::Tensor start = xs(state, 6);
  hpm.step(state, 9);
  EXPECT_FALSE(state.has("teacher.phi"));
  for (int64_t i = 0; i < 6; ++i) {
    const auto alone = loop(oracle, {});
    State own = alone->init();
    own.set("x", start[i]);
    alone->step(own, 9);
    EXPECT_TRUE(at::equal(own.tensor("x"), state.tensor(fmt::format("member.{}.x", i)))) << i;
    EXPECT_TRUE(at::equal(own.tensor("y"), state.tensor(fmt::format("member.{}.y", i)))) << i;
  }
}

TEST(Hpm, WithRandomMutationsAndNoStepOfXIsPopulationBasedTrainingBitForBit) {
  const Boxed problem;
  const AutodiffOracle oracle(problem);
  const Hpm still = population(oracle, small(Mutation::kRandom), {.gradient = true, .outer_lr = 1e-300}),
            pbt = population(oracle, small(Mutation::kRandom), {.gradient = false}),
            moving = population(oracle, small(Mutation::kRandom)), teacher = population(oracle, small(), {.outer_lr = 1e-300});
  State a = still.init(), b = pbt.init(), c = moving.init(), d = teacher.init();
  for (int64_t k = 0; k < 11; ++k) {
    const Record of_a = still.step(a, 1), of_b = pbt.step(b, 1);
    EXPECT_EQ(of_a.outer_loss, of_b.outer_loss);
    EXPECT_EQ(of_a.metrics, of_b.metrics);
    moving.step(c, 1);
    teacher.step(d, 1);
  }
  EXPECT_TRUE(at::equal(xs(a, 6), xs(b, 6)));
  expect_equal(b, a, [](const std::string& name) { return name.ends_with(".y"); });
  // Not so with hypergradients that move x, nor with the teacher's mutations.
  EXPECT_GT(distance(xs(a, 6), xs(c, 6)), 1e-3);
  EXPECT_GT(distance(xs(a, 6), xs(d, 6)), 1e-3);
}

TEST(Hpm, NoHypergradientCostsNothingButTheLoss) {
  const Boxed problem;
  const AutodiffOracle plain(problem);
  const CountedOracle oracle(plain);
  HpmOptions options = small(Mutation::kRandom);
  const Hpm pbt = population(oracle, options, {.gradient = false});
  State state = pbt.init();
  const Record record = pbt.step(state, 4);
  EXPECT_EQ(record.cost.hvps + record.cost.cross_products, 0);
  EXPECT_EQ(record.cost.forwards, 4 * 6);
  EXPECT_EQ(record.cost.oracle_calls(), oracle.cost().oracle_calls());
  EXPECT_EQ(record.hypergradient_norm, 0);
  EXPECT_FALSE(record.certificate);
  // Random search: x stays where it was drawn.
  options.exploit_every = 0;
  const Hpm search = population(oracle, options, {.gradient = false});
  State other = search.init();
  const at::Tensor start = xs(other, 6);
  search.step(other, 7);
  EXPECT_TRUE(at::equal(xs(other, 6), start));
}

TEST(Hpm, ThreadsChangeNoBit) {
  const Boxed problem;
  const AutodiffOracle oracle(problem);
  const auto run = [&](int threads) {
    const ThreadsGuard guard(threads);
    const Hpm hpm = population(oracle, small(), {.outer_lr = 0.05, .adam = true});
    State state = hpm.init();
    hpm.step(state, 13);
    EXPECT_EQ(at::get_num_threads(), threads);
    return state;
  };
  const State sequential = run(1);
  for (const int threads : {2, 4, 9}) expect_equal(sequential, run(threads));
}

TEST(Hpm, ResumesToTheUninterruptedEnd) {
  const Boxed problem;
  const AutodiffOracle oracle(problem);
  const Hpm hpm = population(oracle, small(), {.outer_lr = 0.05, .adam = true});
  State whole = hpm.init();
  hpm.step(whole, 12);
  const std::string path = (std::filesystem::temp_directory_path() / fmt::format("hpm-{}", getpid())).string();
  for (const int64_t cut : {1, 4, 7}) {  // 4: members that have mutated wait for their hypergradient
    State state = hpm.init();
    hpm.step(state, cut);
    save_state(state, path);
    State loaded = load_state(path);
    const Hpm again = population(oracle, small(), {.outer_lr = 0.05, .adam = true});
    for (int64_t k = cut; k < 12; ++k) again.step(loaded, 1);
    expect_equal(whole, loaded);
    EXPECT_TRUE(at::equal(whole.tensor("x"), loaded.tensor("x")));
    EXPECT_EQ(loaded.integer("step"), 12);
  }
  std::filesystem::remove(path);
}

TEST(Hpm, RecordsAndXAreThoseOfTheBestMember) {
  const Boxed problem;
  const AutodiffOracle oracle(problem);
  const ThreadsGuard one(1);
  const Hpm hpm = population(oracle, small());
  State state = hpm.init();
  for (int64_t k = 0; k < 5; ++k) {
    std::vector<double> losses;
    at::Tensor before = xs(state, 6);
    for (int64_t i = 0; i < 6; ++i) {
      State own;
      for (const auto& [name, value] : state.values()) {
        const std::string prefix = fmt::format("member.{}.", i);
        if (name.starts_with(prefix)) own.set(name.substr(prefix.size()), value);
      }
      losses.push_back(loop(oracle, {})->step(own, 1).outer_loss);
    }
    const auto best = std::min_element(losses.begin(), losses.end()) - losses.begin();
    const Record record = hpm.step(state, 1);
    EXPECT_EQ(record.outer_loss, losses[static_cast<size_t>(best)]);
    EXPECT_EQ(record.metrics.at("best_member"), static_cast<double>(best));
    EXPECT_EQ(record.metrics.at("first_x"), before[best][0].item<double>());
    EXPECT_TRUE(at::equal(state.tensor("x"), state.tensor(fmt::format("member.{}.x", best))));
    std::sort(losses.begin(), losses.end());
    EXPECT_EQ(record.metrics.at("median_outer_loss"), (losses[2] + losses[3]) / 2);
  }
  const Record last = hpm.evaluate(state);
  EXPECT_EQ(last.metrics.at("first_x"), state.tensor("x")[0].item<double>());
}

TEST(TruncationSelection, LeavesAllButTheWorstAloneAndDoesNotCareAboutTheOrderOfMembers) {
  const std::vector<double> losses = {5, 1, 9, 3, 8, 2, 7, 6, std::nan(""), 4};
  const Stream stream(3, "selection");
  bool others = false;
  for (int64_t t = 0; t < 20; ++t) {
    const auto copies = truncation_selection(losses, 0.2, stream.at(t));
    ASSERT_EQ(copies.size(), 2u);
    EXPECT_EQ(copies[0].first, 8);
    EXPECT_EQ(copies[1].first, 2);
    EXPECT_EQ(copies[0].second + copies[1].second, 1 + 5);
    EXPECT_TRUE(copies[0].second == 1 || copies[0].second == 5);
    others |= copies[0].second != truncation_selection(losses, 0.2, stream.at(0))[0].second;
    // Members in another order: the same losses copy the same losses.
    const at::Tensor order = Stream(t, "order").at(0).permutation(10);
    std::vector<double> permuted;
    for (int64_t i = 0; i < 10; ++i) permuted.push_back(losses[static_cast<size_t>(order[i].item<int64_t>())]);
    const auto same = truncation_selection(permuted, 0.2, stream.at(t));
    for (size_t j = 0; j < 2; ++j) {
      EXPECT_EQ(order[same[j].first].item<int64_t>(), copies[j].first);
      EXPECT_EQ(order[same[j].second].item<int64_t>(), copies[j].second);
    }
  }
  EXPECT_TRUE(others) << "pairs are drawn";
  EXPECT_EQ(truncation_selection({1, 2, 3}, 0.1, stream.at(0)), (std::vector<std::pair<int64_t, int64_t>>{{2, 0}}));
  EXPECT_TRUE(truncation_selection({1}, 0.5, stream.at(0)).empty());
  EXPECT_EQ(truncation_selection(std::vector<double>(20, 1.0), 0.3, stream.at(0)).size(), 6u);
}

TEST(Hpm, TheWorstTakeAllThatTheBestHaveAndMutateInsideTheBox) {
  const Boxed problem;
  const AutodiffOracle oracle(problem);
  const ThreadsGuard one(1);
  HpmOptions with = small(Mutation::kRandom), without = with;
  without.exploit_every = 0;
  const Hpm hpm = population(oracle, with, {.outer_lr = 0.05, .adam = true}),
            apart = population(oracle, without, {.outer_lr = 0.05, .adam = true});
  State a = hpm.init(), b = apart.init();
  hpm.step(a, 2);
  apart.step(b, 2);
  int64_t copied = 0;
  for (int64_t i = 0; i < 6; ++i) {
    const std::string own = fmt::format("member.{}.", i);
    if (at::equal(a.tensor(own + "x"), b.tensor(own + "x"))) continue;
    ++copied;
    bool found = false;
    for (int64_t parent = 0; parent < 6; ++parent) {
      const std::string theirs = fmt::format("member.{}.", parent);
      if (parent == i || !at::equal(a.tensor(own + "y"), b.tensor(theirs + "y"))) continue;
      found = true;
      for (const char* name : {"inner.state.0", "outer.exp_avg", "outer.exp_avg_sq"}) {
        ASSERT_TRUE(a.has(own + name)) << name;
        EXPECT_TRUE(at::equal(a.tensor(own + name), b.tensor(theirs + name))) << name;
      }
      // Factors of the distance from the lower bound, −2, and not of x, whose sign says nothing.
      const at::Tensor u = b.tensor(theirs + "x") + 2, mutated = a.tensor(own + "x") + 2;
      for (int64_t j = 0; j < 2; ++j) {
        const double from = u[j].item<double>(), to = mutated[j].item<double>();
        EXPECT_TRUE(std::abs(to - 0.8 * from) < 1e-12 || std::abs(to - std::min(1.2 * from, 5.0)) < 1e-12) << from << " " << to;
      }
    }
    EXPECT_TRUE(found) << "member " << i << " has the y of nobody";
  }
  EXPECT_EQ(copied, 2);
}

TEST(Hpm, WhatClippingHasPutAtTheLowerBoundMovesOn) {
  class AtBound final : public Problem {
   public:
    const Layout& outer_layout() const override { return sum.outer_layout(); }
    const Layout& inner_layout() const override { return sum.inner_layout(); }
    at::Tensor initial_outer() const override { return at::tensor({-2.0, -2.0}, at::kDouble); }
    at::Tensor initial_inner(const at::Tensor& x, int64_t s) const override { return sum.initial_inner(x, s); }
    int64_t inner_samples() const override { return FiniteSum::kInner; }
    at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
      return sum.inner_loss(x, y, batch);
    }
    // The nearer to the lower bounds the better: member 0 is the best.
    at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
      return (x + 2).square().sum() + 0.0 * y.sum();
    }
    std::vector<Constraint> outer_constraints() const override { return {Constraint::box(-2, 3)}; }
    FiniteSum sum;
  } bound;
  const AutodiffOracle oracle(bound);
  HpmOptions options = small(Mutation::kRandom);
  options.members = 2;
  const Hpm pbt = population(oracle, options, {.gradient = false});
  State state = pbt.init();
  pbt.step(state, 2);
  const at::Tensor moved = state.tensor("member.1.x") + 2;
  for (int64_t j = 0; j < 2; ++j) {
    const double u = moved[j].item<double>() / 5;
    EXPECT_TRUE(std::abs(u - 0.008) < 1e-12 || std::abs(u - 0.012) < 1e-12) << u;
  }
}

TEST(Hpm, TheTeachersGradientIsThatOfDifferences) {
  Draw draw = Stream(2, "teacher").at(0);
  const int64_t N = 4, M = 3;
  const at::Tensor phi = draw.normal({2 * N * M}), u = draw.uniform({N}), alpha_bar = draw.normal({N});
  const at::Tensor gradient = teacher_gradient(phi, u, alpha_bar);
  at::Tensor expected = at::zeros_like(phi);
  const double h = 1e-6;
  for (int64_t i = 0; i < phi.numel(); ++i) {
    const at::Tensor up = phi.clone(), down = phi.clone();
    up[i] += h;
    down[i] -= h;
    expected[i] = alpha_bar.dot(teacher_factors(up, u) - teacher_factors(down, u)) / (2 * h);
  }
  EXPECT_LT(distance(gradient, expected), 1e-8 * expected.norm().item<double>());
  // Each half counts: it is neither that of V nor that of W alone.
  for (const int64_t half : {0, 1}) EXPECT_GT(expected.narrow(0, half * N * M, N * M).norm().item<double>(), 0.01);
}

TEST(Hpm, TheTeacherStartsNearOneStaysBetweenZeroAndTwoAndIgnoresAConstantInItsLogits) {
  const Boxed problem;
  const AutodiffOracle oracle(problem);
  const State start = population(oracle, small()).init();
  const at::Tensor u = at::tensor({0.3, 0.9}, at::kDouble);
  const at::Tensor alpha = teacher_factors(start.tensor("teacher.phi"), u);
  EXPECT_LT((alpha - 1).abs().max().item<double>(), 0.3);
  EXPECT_GT((alpha - 1).abs().min().item<double>(), 0);
  Draw draw = Stream(2, "teacher").at(1);
  const at::Tensor phi = 5 * draw.normal({2, 2, 3});
  const at::Tensor wild = teacher_factors(phi.flatten(), u);
  EXPECT_GE(wild.min().item<double>(), 0);
  EXPECT_LE(wild.max().item<double>(), 2);
  // u ⊗ (c / ‖u‖²) added to V adds c to each of Vᵀu.
  const at::Tensor shifted = phi.clone();
  shifted[0] += 7 * (u / u.dot(u)).unsqueeze(1);
  EXPECT_LT(distance(teacher_factors(shifted.flatten(), u), wild), 1e-12);
  EXPECT_GT(distance(teacher_factors((phi + 1).flatten(), u), wild), 1e-3);
}

/// What the population's teacher has learned from, by differences: the loss of one more step of the member that has mutated, as a
/// function of φ, its start held fixed.
TEST(Hpm, TheTeacherLearnsFromTheNextHypergradientOfWhoHasMutated) {
  const Boxed problem;
  const AutodiffOracle oracle(problem);
  const ThreadsGuard one(1);
  HpmOptions options = small();
  options.truncation = 0.1;  // one copies
  const Hpm hpm = population(oracle, options);
  State state = hpm.init();
  hpm.step(state, 2);
  std::string prefix;
  for (int64_t i = 0; i < 6; ++i) {
    if (state.has(fmt::format("member.{}.mutated_from", i))) prefix = fmt::format("member.{}.", i);
  }
  ASSERT_FALSE(prefix.empty());
  const at::Tensor u = state.tensor(prefix + "mutated_from"), phi = state.tensor("teacher.phi");
  const auto loss = [&](const at::Tensor& at_phi) {
    State member;
    for (const auto& [name, value] : state.values()) {
      if (name.starts_with(prefix)) member.set(name.substr(prefix.size()), value);
    }
    member.set("x", -2 + 5 * (teacher_factors(at_phi, u) * u));
    return loop(oracle, {})->step(member, 1).outer_loss;
  };
  EXPECT_LT(distance(state.tensor(prefix + "x"), -2 + 5 * (teacher_factors(phi, u) * u)), 1e-14);
  at::Tensor expected = at::zeros_like(phi);
  for (int64_t i = 0; i < phi.numel(); ++i) {
    const at::Tensor up = phi.clone(), down = phi.clone();
    up[i] += 1e-5;
    down[i] -= 1e-5;
    expected[i] = (loss(up) - loss(down)) / 2e-5;
  }
  hpm.step(state, 1);
  // Adam's first moment after one step is (1 − β₁) times the gradient.
  const at::Tensor found = state.tensor("teacher.outer.exp_avg") / 0.1;
  EXPECT_LT(distance(found, expected), 1e-6 * expected.norm().item<double>());
  EXPECT_GT(distance(state.tensor("teacher.phi"), phi), 0);
  EXPECT_FALSE(state.has(prefix + "mutated_from"));
}

TEST(Hpm, TheTeacherSeesNothingOfWhatWasCutOffAtTheUpperBound) {
  const Boxed problem;
  const AutodiffOracle oracle(problem);
  HpmOptions options = small();
  options.truncation = 0.1;
  const Hpm hpm = population(oracle, options, {.outer_lr = 1e-300});
  State state = hpm.init();
  for (int64_t i = 0; i < 6; ++i) state.set(fmt::format("member.{}.x", i), at::tensor({3.0, -0.5 + 0.01 * i}, at::kDouble));
  state.set("teacher.phi", at::cat({at::zeros({6}, at::kDouble), at::full({6}, 0.1, at::kDouble)}));  // α > 1
  hpm.step(state, 3);
  const at::Tensor by_W = state.tensor("teacher.outer.exp_avg").narrow(0, 6, 6).view({2, 3});
  EXPECT_EQ(by_W[0].abs().max().item<double>(), 0);
  EXPECT_GT(by_W[1].abs().min().item<double>(), 1e-3);
}

TEST(Hpm, AFailedMemberIsReplacedAndFailsNothing) {
  const Boxed problem;
  const AutodiffOracle oracle(problem);
  const Hpm hpm = population(oracle, small());
  State state = hpm.init();
  state.set("member.3.y", at::full({3}, std::nan(""), at::kDouble));
  const Record record = hpm.step(state, 2);
  EXPECT_FALSE(failed(record.status));
  EXPECT_TRUE(state.tensor("member.3.y").isfinite().all().item<bool>());
  State lost = hpm.init();
  for (int64_t i = 0; i < 6; ++i) lost.set(fmt::format("member.{}.y", i), at::full({3}, std::nan(""), at::kDouble));
  EXPECT_TRUE(failed(hpm.step(lost, 1).status));
}

TEST(Hpm, TakesWhatTheDriverChangesAfterAFailure) {
  const Boxed problem;
  const AutodiffOracle oracle(problem);
  const Hpm hpm = population(oracle, {.members = 3, .exploit_every = 0});
  State whole = hpm.init(), half = hpm.init();
  half.set("outer_scale", 0.5);
  const at::Tensor start = xs(whole, 3);
  hpm.step(whole, 1);
  hpm.step(half, 1);
  EXPECT_LT(distance(2 * (xs(half, 3) - start), xs(whole, 3) - start), 1e-13);
}

std::string message(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing thrown";
}

TEST(Hpm, SaysWhatIsWrong) {
  const FiniteSum open;
  const AutodiffOracle without_box(open);
  EXPECT_THAT(message([&] { population(without_box, {}); }), testing::HasSubstr("\"x\" has none with two finite sides"));
  const Boxed problem;
  const AutodiffOracle oracle(problem);
  EXPECT_THAT(message([&] { population(oracle, {.members = 0}); }), testing::HasSubstr("members = 0"));
  EXPECT_THAT(message([&] { population(oracle, {.truncation = 0.7}); }), testing::HasSubstr("truncation = 0.7"));
  const Hpm hpm = population(oracle, small());
  State state = hpm.init();
  EXPECT_THAT(message([&] { hpm.step(state, 0); }), testing::HasSubstr("n = 0"));
}

}  // namespace
}  // namespace bilevel::hpm_test
