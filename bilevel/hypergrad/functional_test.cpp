#include "bilevel/hypergrad/functional.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/inner/adam.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::functional_test {
namespace {

using namespace testing;
using ::testing::HasSubstr;
using Adjoint = FunctionalOptions::Adjoint;

constexpr FunctionalOptions kExactHead{.damping = 0};

struct At {
  at::Tensor x, y;
  Batch inner = {}, outer = {};
  Tensors carried = {};
  bool bound = false;
};

Hypergradient at_point(const Functional& functional, const Problem& problem, const At& at, const Oracle* oracle = nullptr) {
  const AutodiffOracle plain(problem);
  const RuleSolver solver = rule_solver({.lr = 0.1}, 0);
  InnerSolution solution;
  solution.y = at.y;
  solution.status = Status::kConverged;
  EstimatorInput input{oracle != nullptr ? *oracle : plain, solver, at.x, solution, at.inner, at.outer, {}};
  input.carried = at.carried;
  input.bound = at.bound;
  return functional.estimate(input);
}

/// Instrumental regression over five instruments: h is any function on them, one number each, and f_x any function of five
/// treatments
///
///   g = mean over the inner samples of c_i ½ (h(s_i) − x(r_i))²,   f = mean over the outer ones of cosh(h(s_j) − t_j) + ½ 0.1
///   ‖x‖²
///
/// Inner and outer samples meet the instruments in different proportions. With N, M the shares of an instrument,
///
///   h*(s) = Σ_{i: s_i = s} c_i x(r_i) / Σ_{i: s_i = s} c_i,   a*(s) = −(M_s/N_s) E[sinh(h(s) − t) | s] / E[c | s]
class Instruments final : public TestProblem {
 public:
  static constexpr int64_t kInstruments = 5, kInner = 40, kOuter = 30;
  explicit Instruments(at::ScalarType dtype = at::kDouble) {
    Draw draw = Stream(3, "instruments").at(0);
    s_ = at::cat({at::arange(kInstruments, at::kLong), draw.integers(kInstruments, {kInner - kInstruments})});
    outer_s_ = draw.uniform({kOuter}).square().mul(kInstruments).to(at::kLong);  // small numbers more often
    r_ = draw.integers(kInstruments, {kInner});
    c_ = (0.5 + draw.uniform({kInner})).to(dtype);
    t_ = draw.normal({kOuter}).to(dtype);
    outer_layout_.add("treatment", {kInstruments});
    inner_layout_.add("h", {kInstruments});
    x0_ = draw.normal({kInstruments}).to(dtype);
    y0_ = at::zeros({kInstruments}, dtype);
  }
  bool has_outputs() const override { return true; }
  bool has_outer_outputs() const override { return true; }
  int64_t inner_samples() const override { return kInner; }
  int64_t outer_samples() const override { return kOuter; }
  at::Tensor inner_outputs(const at::Tensor& y, const Batch& b) const override { return y.index_select(0, of(s_, b)); }
  at::Tensor outer_outputs(const at::Tensor& y, const Batch& b) const override { return y.index_select(0, of(outer_s_, b)); }
  std::optional<OutputLayer> output_layer() const override { return OutputLayer{"h", ""}; }
  at::Tensor inner_features(const at::Tensor& y, const Batch& b) const override { return indicators(of(s_, b), y); }
  at::Tensor outer_features(const at::Tensor& y, const Batch& b) const override { return indicators(of(outer_s_, b), y); }
  at::Tensor inner_loss_of_outputs(const at::Tensor& x, const at::Tensor&, const at::Tensor& z, const Batch& b) const override {
    return 0.5 * (of(c_, b) * (z - x.index_select(0, of(r_, b))).square()).mean();
  }
  at::Tensor outer_loss_of_outputs(const at::Tensor& x, const at::Tensor&, const at::Tensor& z, const Batch& b) const override {
    return (z - of(t_, b)).cosh().mean() + 0.05 * x.square().sum();
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return inner_loss_of_outputs(x, y, inner_outputs(y, b), b);
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return outer_loss_of_outputs(x, y, outer_outputs(y, b), b);
  }

  at::Tensor solution(const at::Tensor& x) const { return sums(s_, c_ * x.index_select(0, r_)) / sums(s_, c_); }
  at::Tensor F(const at::Tensor& x) const { return outer_loss(x, solution(x), {}); }
  /// a* with the samples' roles as they are or, `swapped`, with the slope at the inner and the curvature at the outer ones.
  at::Tensor adjoint(const at::Tensor& y) const {
    const at::Tensor slope = (outer_outputs(y, {}) - t_).sinh();
    return -(sums(outer_s_, slope) / static_cast<double>(kOuter)) / (sums(s_, c_) / static_cast<double>(kInner));
  }

 private:
  static at::Tensor of(const at::Tensor& all, const Batch& b) { return b.full() ? all : all.index_select(0, b.samples); }
  static at::Tensor sums(const at::Tensor& s, const at::Tensor& values) {
    return at::zeros({kInstruments}, values.options()).index_add(0, s, values);
  }
  static at::Tensor indicators(const at::Tensor& s, const at::Tensor& y) {
    return at::arange(kInstruments, at::kLong).unsqueeze(1).eq(s).to(y.scalar_type());
  }
  at::Tensor s_, outer_s_, r_, c_, t_;
};

FunctionalOptions network(int64_t steps, double lr) {
  return {.adjoint = Adjoint::kNetwork, .adjoint_steps = steps, .adjoint_lr = lr};
}

TEST(Functional, IsTheDerivativeOfFByDifferencesWhereHIsAnyFunction) {
  const Instruments problem;
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x);
  const at::Tensor expected = differences([&](const at::Tensor& at) { return problem.F(at).item<double>(); }, x);
  const Hypergradient head = at_point(Functional(kExactHead), problem, {x, y});
  EXPECT_LT(relative_error(head.value, expected), 1e-8);
  EXPECT_LT(relative_error(head.value - head.direct, expected - head.direct), 1e-8);
  EXPECT_GT(relative_error(head.direct, expected), 0.1);
  EXPECT_EQ(head.grade, Grade::kOk) << head.message;
  EXPECT_TRUE(head.certificate.bias.empty());
  EXPECT_LT(*head.certificate.relative_residual, 1e-12);

  const Hypergradient trained = at_point(Functional(network(4000, 0.02)), problem, {x, y, {}, {}, {}, true});
  EXPECT_LT(relative_error(trained.value - trained.direct, expected - trained.direct), 1e-4);
  EXPECT_FALSE(trained.certificate.bias.empty());
  EXPECT_GT(*trained.certificate.adjoint_cosine, 1 - 1e-6);
}

// Half of it without ½ on the quadratic term; another function with the samples' roles exchanged.
TEST(Functional, TrainsTheNetworkToTheAdjointInClosedForm) {
  const Instruments problem;
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x), a = problem.adjoint(y);
  const Hypergradient h = at_point(Functional(network(4000, 0.02)), problem, {x, y});
  ASSERT_EQ(h.carried.size(), 4u);
  EXPECT_LT(relative_error(h.carried[0], a), 1e-4);
  EXPECT_EQ(h.carried[3].item<int64_t>(), 4000);
}

TEST(Functional, LeavesTheModelAndItsSamplesApart) {
  const Instruments problem;
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x) + 0.2, before = y.clone();
  At some{x, y};
  some.inner.samples = at::arange(0, 20, at::kLong);
  some.outer.samples = at::arange(0, 12, at::kLong);
  const Functional functional(network(50, 0.02));
  const Hypergradient h = at_point(functional, problem, some);
  EXPECT_TRUE(at::equal(y, before));
  EXPECT_FALSE(h.value.requires_grad());
  for (Batch At::*which : {&At::inner, &At::outer}) {
    At all = some;
    (all.*which) = {};
    EXPECT_GT(relative_error(at_point(functional, problem, all).value, h.value), 1e-3);
  }
}

// On a linear model the head is all of y, with what a ridge owes to x, and with the rule's own decay.
TEST(Functional, IsTheImplicitOneInClosedFormOnLinearModels) {
  const RidgeProblem ridge;
  const at::Tensor x = ridge.initial_outer();
  EXPECT_LT(relative_error(at_point(Functional(kExactHead), ridge, {x, ridge.solution(x)}).value, ridge.hypergradient(x)), 1e-10);
  const LogisticWeightsProblem logistic;
  const at::Tensor u = logistic.initial_outer(), y = logistic.solution(u);
  const Hypergradient h = at_point(Functional(kExactHead), logistic, {u, y});
  EXPECT_LT(relative_error(h.value, logistic.hypergradient(u, y)), 1e-10);
  EXPECT_GT(relative_error(h.direct, h.value), 0.1);
  const RuleSolver solver = rule_solver({.lr = 0.5}, 3);
  expect_nothing_else_gives(estimate(Functional(kExactHead), logistic, solver, u).value, "functional", logistic, solver, u, 1e-3);
}

TEST(Functional, CountsTheDecayOfTheRuleAmongTheHeadsOwnWeights) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer();
  PlainRule rule{.lr = 0.5, .weight_decay = 0.2};
  for (const bool decoupled : {false, true}) {
    if (decoupled) rule = {.kind = PlainRule::Kind::kAdam, .lr = 0.05, .weight_decay = 0.1, .decoupled = true};
    const RuleSolver solver = rule_solver(rule, 30);
    Section section = Config::parse("solver = \"dense\"", "test").root();
    const Hypergradient expected = estimate(*make_estimator("implicit", section), problem, solver, x);
    EXPECT_LT(relative_error(estimate(Functional(kExactHead), problem, solver, x).value, expected.value), 1e-9);
  }
}

TEST(Functional, TakesNoProductWithTheHessianByTheWeights) {
  const MlpProblem problem;
  const AutodiffOracle plain(problem);
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0);
  const CountedOracle of_head(plain), of_network(plain);
  at_point(Functional(), problem, {x, y}, &of_head);
  at_point(Functional(network(7, 1e-2)), problem, {x, y}, &of_network);
  EXPECT_EQ(of_head.cost().hvps, 0);
  EXPECT_EQ(of_network.cost().hvps, 0);
  EXPECT_EQ(of_head.cost().gradients, 1);  // f's
  EXPECT_EQ(of_head.cost().cross_products, 1);
  EXPECT_EQ(of_head.cost().forwards, 4);
  EXPECT_EQ(of_network.cost().gradients, 1 + 2 * 7);
  EXPECT_EQ(of_network.cost().cross_products, 1);
  EXPECT_EQ(of_network.cost().forwards, 3);
}

// The sum of two halves of the steps, with what was kept between them, and not the second half from the start.
TEST(Functional, GoesOnWithWeightsAndMomentsFromTheStepBefore) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0);
  const Hypergradient whole = at_point(Functional(network(20, 1e-2)), problem, {x, y});
  const Functional half(network(10, 1e-2));
  At at{x, y};
  const Hypergradient first = at_point(half, problem, at);
  at.carried = first.carried;
  const Hypergradient second = at_point(half, problem, at);
  EXPECT_TRUE(at::equal(second.value, whole.value));
  EXPECT_GT(relative_error(first.value, whole.value), 1e-3);
}

TEST(Functional, TellsHowFarTheNetworksAdjointLags) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer(), y = unrolled_end(problem, x, {.lr = 0.1}, 200);
  At at{x, y, {}, {}, {}, true};
  const Hypergradient one = at_point(Functional(network(1, 1e-3)), problem, at);
  ASSERT_TRUE(one.certificate.adjoint_cosine.has_value());
  EXPECT_LT(*one.certificate.adjoint_cosine, 0.5);
  EXPECT_EQ(one.grade, Grade::kWarn);
  EXPECT_THAT(one.message, HasSubstr("adjoint_steps"));
  at.bound = false;
  EXPECT_FALSE(at_point(Functional(network(1, 1e-3)), problem, at).certificate.adjoint_cosine.has_value());

  const Instruments instruments;
  const at::Tensor u = instruments.initial_outer(), h = instruments.solution(u);
  const at::Tensor samples = instruments.inner_features(h, {}).sum(1);  // of each instrument
  const at::Tensor a = instruments.adjoint(h);
  double before = 0;
  for (const int64_t steps : {3, 30, 1000}) {
    const Hypergradient found = at_point(Functional(network(steps, 1e-2)), instruments, {u, h, {}, {}, {}, true});
    const at::Tensor w = found.carried[0];
    const double by_hand = ((samples * w).dot(a) / ((samples * w).dot(w) * (samples * a).dot(a)).sqrt()).item<double>();
    EXPECT_NEAR(*found.certificate.adjoint_cosine, by_hand, 1e-5);
    EXPECT_GT(by_hand, before);
    before = by_hand;
  }
  EXPECT_GT(before, 0.99);
}

// With twice as many features as samples the Hessian is singular whatever the loss; the functional derivative does not see it.
TEST(Functional, DoesNotDependOnFeaturesThatSayTheSameTwice) {
  const Instruments problem;
  class Doubled final : public TestProblem {
   public:
    explicit Doubled(const Instruments& base) : base_(base) {
      outer_layout_ = base.outer_layout();
      inner_layout_.add("h", {2 * Instruments::kInstruments});
      x0_ = base.initial_outer();
      y0_ = at::zeros({2 * Instruments::kInstruments}, at::kDouble);
    }
    bool has_outputs() const override { return true; }
    bool has_outer_outputs() const override { return true; }
    at::Tensor inner_outputs(const at::Tensor& y, const Batch& b) const override { return base_.inner_outputs(once(y), b); }
    at::Tensor outer_outputs(const at::Tensor& y, const Batch& b) const override { return base_.outer_outputs(once(y), b); }
    std::optional<OutputLayer> output_layer() const override { return OutputLayer{"h", ""}; }
    at::Tensor inner_features(const at::Tensor& y, const Batch& b) const override {
      return base_.inner_features(y, b).repeat({2, 1});
    }
    at::Tensor outer_features(const at::Tensor& y, const Batch& b) const override {
      return base_.outer_features(y, b).repeat({2, 1});
    }
    at::Tensor inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& z,
                                     const Batch& b) const override {
      return base_.inner_loss_of_outputs(x, y, z, b);
    }
    at::Tensor outer_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& z,
                                     const Batch& b) const override {
      return base_.outer_loss_of_outputs(x, y, z, b);
    }
    at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
      return base_.inner_loss(x, once(y), b);
    }
    at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
      return base_.outer_loss(x, once(y), b);
    }

   private:
    static at::Tensor once(const at::Tensor& y) { return y.view({2, -1}).sum(0); }
    const Instruments& base_;
  };
  const Doubled doubled(problem);
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x);
  const Hypergradient expected = at_point(Functional(kExactHead), problem, {x, y});
  const at::Tensor halves = at::cat({0.5 * y, 0.5 * y});
  const Hypergradient h = at_point(Functional(), doubled, {x, halves});  // a damping of 1e-6
  EXPECT_LT(relative_error(h.value, expected.value), 1e-4);
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
  const Hypergradient singular = at_point(Functional(kExactHead), doubled, {x, halves});
  EXPECT_LT(relative_error(singular.value, expected.value), 1e-8);
  EXPECT_EQ(singular.grade, Grade::kWarn);
}

TEST(Functional, KeepsItsDigitsInSinglePrecision) {
  const Instruments problem, single(at::kFloat);
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x);
  const Hypergradient h = at_point(Functional(), problem, {x, y});
  const Hypergradient s = at_point(Functional(), single, {x.to(at::kFloat), y.to(at::kFloat)});
  EXPECT_EQ(s.value.scalar_type(), at::kFloat);
  EXPECT_LT(relative_error(s.value.to(at::kDouble), h.value), 1e-5);
}

TEST(Functional, NamesWhatItDifferentiatesAndItsBias) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  const Hypergradient h = at_point(Functional(), problem, {x, problem.initial_inner(x, 0)});
  EXPECT_EQ(h.certificate.differentiates, "F");
  EXPECT_THAT(h.certificate.bias, HasSubstr("last layer's features"));
  EXPECT_THAT(h.message, HasSubstr("head of 7 weights"));
}

TEST(Functional, RefusesWhatIsNoFunctionOfOutputs) {
  const RuleSolver solver = rule_solver({}, 5);
  const auto objection = [&](const FunctionalOptions& options, const Problem& problem) {
    const auto all = Functional(options).objections(problem, solver);
    return all.empty() ? std::string() : all.front();
  };
  EXPECT_THAT(objection({}, QuadraticProblem()), HasSubstr("has_outputs"));
  EXPECT_EQ(objection({}, RidgeProblem()), "");  // the last layer's own
  EXPECT_THAT(objection(network(5, 0.1), RidgeProblem()), HasSubstr("6 of 6 elements of x, log_ridge[0]"));
  EXPECT_EQ(objection({}, LogisticWeightsProblem()), "");
  EXPECT_EQ(objection(network(5, 0.1), LogisticWeightsProblem()), "");
  EXPECT_THAT(objection({}, MlpProblem()), HasSubstr("1 of 22 elements of x, ridge[0]"));
  EXPECT_THAT(objection(network(5, 0.1), MlpProblem()), HasSubstr("2 of 22"));
  PlainRule rule;
  rule.learned_lr = true;
  const LogisticWeightsProblem base;
  EXPECT_THAT(Functional().objections(LearnedRuleProblem(base, 0.1), rule_solver(rule, 5)).front(), HasSubstr("has_outputs"));
  EXPECT_THROW(Functional({.damping = -1}), Error);
  EXPECT_THROW(Functional(network(0, 0.1)), Error);
  EXPECT_THROW(Functional(network(1, 0.0)), Error);
}

TEST(Functional, IsReadFromAConfiguration) {
  Section wrong = Config::parse("adjoint = \"head\"\nadjoint_steps = 3", "test").root();
  make_estimator("functional", wrong);
  EXPECT_THROW(wrong.finish(), Error);
  Section right = Config::parse("adjoint = \"network\"\nadjoint_steps = 3\nadjoint_lr = 0.1", "test").root();
  const auto estimator = make_estimator("functional", right);
  EXPECT_NO_THROW(right.finish());
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0);
  EXPECT_TRUE(at::equal(estimate(*estimator, problem, rule_solver({}, 0), x).value,
                        at_point(Functional(network(3, 0.1)), problem, {x, y}).value));
}

}  // namespace
}  // namespace bilevel::functional_test
