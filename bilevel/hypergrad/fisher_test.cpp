#include "bilevel/hypergrad/fisher.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel::fisher_test {
namespace {

using namespace testing;
using ::testing::HasSubstr;
using Form = FisherOptions::Form;

Batch batch_of(std::vector<int64_t> samples, uint64_t seed) {
  Batch batch;
  if (!samples.empty()) batch.samples = at::tensor(samples, at::kLong);
  batch.seed = seed;
  return batch;
}

at::Tensor fisher_of(const Oracle& oracle, const at::Tensor& x, const at::Tensor& y, const Batch& batch, Labels labels) {
  const at::Tensor S = oracle.scores(x, y, batch, labels).flatten(0, 1);
  return S.t().mm(S);
}

// Jᵀ ∂zz g J without the ridge.
at::Tensor gauss_newton(const Problem& problem, const at::Tensor& x, const at::Tensor& y) {
  const AutodiffOracle oracle(problem);
  const at::Tensor with_ridge = oracle.linearize_inner(x, y, {})->gauss_newton(at::eye(y.size(0), y.options()));
  return with_ridge - at::diag(problem.inner_likelihood(x, {}).ridge);
}

at::Tensor some_y(const Problem& problem) {
  return 0.3 + 0.5 * at::sin(at::arange(1, problem.inner_layout().size() + 1, at::kDouble));
}

/// The mean of matrices that are drawn, and the standard error of each of their elements.
struct Average {
  at::Tensor sum, squares;
  double n = 0;
  void add(const at::Tensor& value) {
    sum = sum.defined() ? sum + value : value;
    squares = squares.defined() ? squares + value.square() : value.square();
    ++n;
  }
  at::Tensor mean() const { return sum / n; }
  double standard_error() const {  // 2-norm
    return ((squares / n - mean().square()) / (n - 1)).sum().sqrt().item<double>();
  }
};

// ---- Scores ----

TEST(Scores, SumUpToTheGradientOfTheLikelihood) {
  const LogisticWeightsProblem logistic;
  const MlpProblem mlp;
  const RidgeProblem ridge;
  for (const Problem* problem : std::initializer_list<const Problem*>{&logistic, &mlp, &ridge}) {
    const AutodiffOracle oracle(*problem);
    const at::Tensor x = problem->initial_outer(), y = some_y(*problem);
    for (const Batch& batch : {Batch{}, batch_of({3, 1, 7, 1}, 0)}) {
      const Likelihood likelihood = problem->inner_likelihood(x, batch);
      const at::Tensor S = oracle.scores(x, y, batch, Labels::kObserved);
      ASSERT_EQ(S.sizes(), at::IntArrayRef({likelihood.weights.size(0), 1, y.size(0)}));
      const at::Tensor sum = likelihood.weights.sqrt().matmul(S.squeeze(1)) + likelihood.ridge * y;
      EXPECT_LT(relative_error(sum, oracle.inner(x, y, batch).y), 1e-12);
    }
  }
}

TEST(Scores, WithAllLabelsAreTheGaussNewtonMatrixWhateverTheDataSay) {
  const LogisticWeightsProblem logistic;
  const MlpProblem mlp;
  const RidgeProblem ridge;
  for (const Problem* problem : std::initializer_list<const Problem*>{&logistic, &mlp, &ridge}) {
    const AutodiffOracle oracle(*problem);
    const at::Tensor x = problem->initial_outer(), y = some_y(*problem);
    const at::Tensor expected = gauss_newton(*problem, x, y);
    EXPECT_LT(relative_error(fisher_of(oracle, x, y, {}, Labels::kEnumerated), expected), 1e-11);
    EXPECT_GT(relative_error(fisher_of(oracle, x, y, {}, Labels::kObserved), expected), 0.05);
  }
}

TEST(Scores, WithSampledLabelsAreUnbiasedForIt) {
  const LogisticWeightsProblem logistic;
  const MlpProblem mlp;
  for (const Problem* problem : std::initializer_list<const Problem*>{&logistic, &mlp}) {
    const AutodiffOracle oracle(*problem);
    const at::Tensor x = problem->initial_outer(), y = some_y(*problem);
    Average average;
    for (uint64_t seed = 0; seed < 400; ++seed) average.add(fisher_of(oracle, x, y, batch_of({}, seed), Labels::kSampled));
    const at::Tensor expected = gauss_newton(*problem, x, y);
    EXPECT_LT((average.mean() - expected).norm().item<double>(), 3 * average.standard_error());
    // The neighbours are told apart by that many draws.
    EXPECT_GT((fisher_of(oracle, x, y, {}, Labels::kObserved) - expected).norm().item<double>(), 3 * average.standard_error());
  }
}

// A batch-mean gradient is no score: its outer product is the B-th part, and more.
TEST(Scores, OfBatchesAreUnbiasedForAllSamples) {
  const LogisticWeightsProblem problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer(), y = some_y(problem);
  const at::Tensor expected = fisher_of(oracle, x, y, {}, Labels::kObserved), ridge = problem.inner_likelihood(x, {}).ridge;
  Average average, of_mean_gradients;
  const BatchPlan plan = BatchPlan::shuffled(problem.inner_samples(), 4, Stream(0, "batches"));
  for (int64_t t = 0; t < 600; ++t) {
    Batch batch;
    batch.samples = plan.samples(t);
    average.add(fisher_of(oracle, x, y, batch, Labels::kObserved));
    const at::Tensor gradient = oracle.inner(x, y, batch).y - ridge * y;
    of_mean_gradients.add(at::outer(gradient, gradient));
  }
  EXPECT_LT((average.mean() - expected).norm().item<double>(), 3 * average.standard_error());
  EXPECT_GT((of_mean_gradients.mean() - expected).norm().item<double>(), 10 * of_mean_gradients.standard_error());
}

TEST(Scores, AreDrawnBySeedAndNumberOfTheSampleAlone) {
  const LogisticWeightsProblem problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer(), y = some_y(problem);
  const at::Tensor all = oracle.scores(x, y, batch_of({2, 9, 5, 11}, 3), Labels::kSampled);
  const at::Tensor two = oracle.scores(x, y, batch_of({11, 9}, 3), Labels::kSampled);
  EXPECT_LT(relative_error(std::sqrt(2.0) * at::stack({all[3], all[1]}), two), 1e-14);
  EXPECT_FALSE(at::equal(all, oracle.scores(x, y, batch_of({2, 9, 5, 11}, 4), Labels::kSampled)));
}

// ---- The hypergradient ----

struct Where {
  at::Tensor y;
  int64_t steps = 0;
  BatchPlan plan = BatchPlan::full();
  double lr = 0.1, weight_decay = 0.0, damping = 0.0;
  uint64_t seed = 0;
  Tensors carried = {};
  bool follow = false;
};

Hypergradient fisher_at(const FisherOptions& options, const Problem& problem, const at::Tensor& x, const Where& where,
                        const Oracle* counted = nullptr) {
  const Fisher fisher(options);
  const AutodiffOracle plain(problem);
  const Oracle& oracle = counted != nullptr ? *counted : plain;
  PlainRule rule;
  rule.lr = where.lr, rule.weight_decay = where.weight_decay;
  const RuleSolver solver = rule_solver(rule, where.steps, where.plan);
  const InnerStart start{.y = where.y};
  InnerSolution solution;
  Batch inner;
  inner.seed = where.seed;
  EstimatorInput input{oracle, solver, x, solution, inner, {}, {}};
  input.cold_start = false;
  input.damping = where.damping;
  input.carried = where.carried;
  TrajectoryPolicy policy = fisher.trajectory();
  if (where.follow) policy.follower = fisher.follower(input);
  solution = solver.solve(oracle, x, 0, start, policy);
  return fisher.estimate(input);
}

FisherOptions at_the_end(Form form, Labels labels) {
  return {.form = form, .labels = labels, .scores = 0, .steps = 0, .damping = 0.0};
}

TEST(Fisher, IsExactAtTheOptimumWithAllLabels) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x);
  const at::Tensor exact = problem.hypergradient(x, y);
  for (const Form form : {Form::kWindow, Form::kDense}) {
    const Hypergradient h = fisher_at(at_the_end(form, Labels::kEnumerated), problem, x, {.y = y});
    const double implicit = (exact - h.direct).norm().item<double>();
    EXPECT_LT((h.value - exact).norm().item<double>(), 1e-10 * implicit);
    EXPECT_EQ(h.grade, Grade::kOk) << h.message;
    // Without √ in the weights, without the ridge, or with the data's labels it is another.
    const at::Tensor b = outer_grad_y(problem, x, y), G = cross(problem, x, y), H = problem.hessian(x, y);
    const auto with = [&](const at::Tensor& A) { return h.direct - G.t().mv(at::linalg_solve(A, b)); };
    EXPECT_LT((with(H) - exact).norm().item<double>(), 1e-10 * implicit);
    const Likelihood l = problem.inner_likelihood(x, {});
    const at::Tensor S = AutodiffOracle(problem).scores(x, y, {}, Labels::kEnumerated);
    const at::Tensor w_squared = (S * l.weights.sqrt().view({-1, 1, 1}) * std::sqrt(24.0)).flatten(0, 1);
    EXPECT_GT((with(w_squared.t().mm(w_squared) + at::diag(l.ridge)) - exact).norm().item<double>(), 0.1 * implicit);
    EXPECT_GT((with(H - at::diag(l.ridge)) - exact).norm().item<double>(), 0.1 * implicit);
    const Hypergradient observed = fisher_at(at_the_end(form, Labels::kObserved), problem, x, {.y = y});
    EXPECT_GT((observed.value - exact).norm().item<double>(), 0.05 * implicit);
    EXPECT_GT(implicit, 0.1 * exact.norm().item<double>());
  }
}

TEST(Fisher, IsExactOnRidgeRegressionWithAllLabels) {
  const RidgeProblem problem;
  const at::Tensor x = problem.initial_outer();
  for (const Form form : {Form::kWindow, Form::kDense}) {
    const Hypergradient h = fisher_at(at_the_end(form, Labels::kEnumerated), problem, x, {.y = problem.solution(x)});
    EXPECT_LT(relative_error(h.value, problem.hypergradient(x)), 1e-10);
  }
}

TEST(Fisher, WithSampledLabelsIsExactToThreeStandardErrors) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x);
  const at::Tensor exact = problem.hypergradient(x, y);
  // y stays where it is, and each of 100 steps draws labels for all 24 samples.
  const FisherOptions options{.scores = 0, .steps = 100, .window = 2400, .damping = 0.0};
  Average average;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    average.add(fisher_at(options, problem, x, {.y = y, .steps = 100, .lr = 1e-12, .seed = seed}).value);
  }
  EXPECT_LT((average.mean() - exact).norm().item<double>(), 3 * average.standard_error());
  const at::Tensor observed = fisher_at(at_the_end(Form::kWindow, Labels::kObserved), problem, x, {.y = y}).value;
  EXPECT_GT((observed - exact).norm().item<double>(), 3 * average.standard_error());
}

// The mean over the points of the inner solve, by the formula.
TEST(Fisher, TakesItsScoresAlongTheInnerSolve) {
  const LogisticWeightsProblem problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer(), y0 = some_y(problem);
  const BatchPlan plan = BatchPlan::shuffled(problem.inner_samples(), 6, Stream(0, "batches"));
  PlainRule rule;
  rule.lr = 2.0;
  const RuleSolver solver = rule_solver(rule, 6, plan);
  for (const int64_t last : {6, 4}) {
    at::Tensor y = y0, F = at::zeros({y0.size(0), y0.size(0)}, at::kDouble);
    for (int64_t t = 0; t < 6; ++t) {
      const Batch batch = solver.batch(t, 0);
      if (t >= 6 - last) F += fisher_of(oracle, x, y, batch, Labels::kObserved) / static_cast<double>(last);
      y = y - 2.0 * oracle.inner(x, y, batch).y;
    }
    const at::Tensor A = F + at::diag(problem.inner_likelihood(x, {}).ridge + 0.01);
    const at::Tensor expected =
        outer_grad_x(problem, x, y) - cross(problem, x, y).t().mv(at::linalg_solve(A, outer_grad_y(problem, x, y)));
    for (const Form form : {Form::kWindow, Form::kDense}) {
      const FisherOptions options{.form = form, .labels = Labels::kObserved, .scores = 0, .steps = last, .damping = 0.01};
      const Hypergradient h = fisher_at(options, problem, x, {.y = y0, .steps = 6, .plan = plan, .lr = 2.0});
      EXPECT_LT(relative_error(h.value - h.direct, expected - h.direct), 1e-10) << last;
      const Hypergradient at_end = fisher_at(at_the_end(form, Labels::kObserved), problem, x, {.y = y, .damping = 0.01});
      EXPECT_GT(relative_error(at_end.value, expected), 0.01);
    }
  }
}

TEST(Fisher, GoesOnFromTheOuterStepBefore) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer(), y = some_y(problem);
  for (const Form form : {Form::kWindow, Form::kDense}) {
    const FisherOptions options{.form = form, .labels = Labels::kObserved, .scores = 3, .window = 60, .smoothing = 0.8};
    const Hypergradient first = fisher_at(options, problem, x, {.y = y, .steps = 5, .seed = 1});
    const Hypergradient alone = fisher_at(options, problem, x, {.y = y, .steps = 5, .seed = 2});
    const Hypergradient second = fisher_at(options, problem, x, {.y = y, .steps = 5, .seed = 2, .carried = first.carried});
    EXPECT_GT(relative_error(second.value, alone.value), 0.01);
    if (form == Form::kWindow) {
      EXPECT_EQ(second.carried.front().size(0), 30);
      EXPECT_TRUE(at::equal(second.carried.front(), at::cat({first.carried.front(), alone.carried.front()})));
    }
  }
}

TEST(Fisher, TakesEitherFormForOneMatrixToStandForTheHessian) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer(), y = some_y(problem);
  const FisherOptions window{.scores = 5, .steps = 4, .window = 1000};
  FisherOptions dense = window;
  dense.form = Form::kDense;
  // In one solve both are the mean of all blocks.
  EXPECT_LT(relative_error(fisher_at(dense, problem, x, {.y = y, .steps = 4}).value,
                           fisher_at(window, problem, x, {.y = y, .steps = 4}).value),
            1e-9);
}

// A block for each layer, of the scores' partial traces, by the formula.
at::Tensor of_factors(const at::Tensor& S, int64_t out, int64_t columns) {
  const at::Tensor M = S.view({S.size(0), out, columns});
  const at::Tensor L = at::einsum("rij,rkj->ik", {M, M}), R = at::einsum("rij,ril->jl", {M, M});
  return at::kron(L, R) / L.trace();
}

TEST(Fisher, TakesKroneckerFactorsOfEachLayerOfANetwork) {
  const MlpProblem problem({.features = 3, .hidden = 4});
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer(), y = some_y(problem), ridge = problem.inner_likelihood(x, {}).ridge + 0.05;
  const FisherOptions options{.form = Form::kKronecker, .labels = Labels::kEnumerated, .scores = 0, .steps = 0, .damping = 0.05};
  const Hypergradient h = fisher_at(options, problem, x, {.y = y});
  // hidden.weight [4, 3] and hidden.bias [4], then output.weight [1, 4] and output.bias [1].
  std::vector<int64_t> of_matrices;
  for (int64_t i = 0; i < 4; ++i) of_matrices.insert(of_matrices.end(), {3 * i, 3 * i + 1, 3 * i + 2, 12 + i});
  for (int64_t j = 16; j < 21; ++j) of_matrices.push_back(j);
  const at::Tensor where = at::tensor(of_matrices, at::kLong);
  const at::Tensor S = oracle.scores(x, y, {}, Labels::kEnumerated).flatten(0, 1), M = S.index_select(1, where);
  at::Tensor F = at::zeros({21, 21}, at::kDouble);
  F.index_put_({where.narrow(0, 0, 16).unsqueeze(1), where.narrow(0, 0, 16)}, of_factors(M.narrow(1, 0, 16), 4, 4));
  F.index_put_({where.narrow(0, 16, 5).unsqueeze(1), where.narrow(0, 16, 5)}, of_factors(M.narrow(1, 16, 5), 1, 5));
  const auto with = [&](const at::Tensor& A) {
    return -cross(problem, x, y).t().mv(at::linalg_solve(A + at::diag(ridge), outer_grad_y(problem, x, y)));
  };
  EXPECT_LT(relative_error(h.value - h.direct, with(F)), 1e-10);
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
  for (const at::Tensor& neighbour : {S.t().mm(S), at::diag(S.square().sum(0)), at::zeros_like(F)}) {
    EXPECT_GT(relative_error(with(neighbour), with(F)), 0.02);
  }
}

TEST(Fisher, GivesTheSameBitsWithASecondThread) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer(), y = some_y(problem);
  const BatchPlan plan = BatchPlan::shuffled(problem.inner_samples(), 6, Stream(0, "batches"));
  for (const Form form : {Form::kDense, Form::kKronecker}) {
    FisherOptions options{.form = form, .scores = 4, .steps = 9, .smoothing = 0.9};
    const Where first{.y = y, .steps = 12, .plan = plan, .lr = 0.3, .seed = 1};
    const Hypergradient plain = fisher_at(options, problem, x, first);
    Where second = first;
    second.seed = 2, second.carried = plain.carried;
    const Hypergradient after = fisher_at(options, problem, x, second);
    options.overlap = true;
    for (const bool follow : {true, false}) {  // beside the inner steps, and beside the scores alone
      Where where = first;
      where.follow = follow;
      const Hypergradient h = fisher_at(options, problem, x, where);
      EXPECT_TRUE(at::equal(h.value, plain.value));
      EXPECT_TRUE(at::equal(h.q, plain.q));
      EXPECT_EQ(h.message, plain.message);
      ASSERT_EQ(h.carried.size(), plain.carried.size());
      for (size_t i = 0; i < h.carried.size(); ++i) EXPECT_TRUE(at::equal(h.carried[i], plain.carried[i]));
      EXPECT_GT(h.cost.second_thread_seconds, 0);
      EXPECT_LE(h.cost.hidden_seconds, h.cost.second_thread_seconds);
      where = second;
      where.follow = follow, where.carried = h.carried;
      EXPECT_TRUE(at::equal(fisher_at(options, problem, x, where).value, after.value));
    }
    EXPECT_EQ(plain.cost.second_thread_seconds, 0);
    EXPECT_GT(relative_error(after.value, plain.value), 1e-3);
  }
}

TEST(Fisher, TakesTheLastStepsOfASolveThatEndsEarlierThanItsFollowerWasTold) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer(), y = at::full_like(some_y(problem), 1e308);
  FisherOptions options{.form = Form::kKronecker, .labels = Labels::kObserved, .scores = 4, .steps = 3};
  const Hypergradient plain = fisher_at(options, problem, x, {.y = y, .steps = 20});
  options.overlap = true;
  const Hypergradient followed = fisher_at(options, problem, x, {.y = y, .steps = 20, .follow = true});
  EXPECT_EQ(followed.grade, plain.grade);
  EXPECT_EQ(followed.message, plain.message);
}

TEST(Fisher, CountsAWeightDecayOfTheRuleAndTheDampingOfARunAsRidge) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer(), y = some_y(problem);
  const FisherOptions options = at_the_end(Form::kWindow, Labels::kEnumerated);
  const auto value = [&](double decay, double damping) {
    return fisher_at(options, problem, x, {.y = y, .weight_decay = decay, .damping = damping}).value;
  };
  EXPECT_LT(relative_error(value(0.3, 0.0), value(0.0, 0.3)), 1e-12);
  EXPECT_GT(relative_error(value(0.3, 0.0), value(0.0, 0.0)), 0.01);
}

TEST(Fisher, TakesNoProductWithTheHessianBesideTheOneOfTheCrossProduct) {
  const LogisticWeightsProblem problem;
  const AutodiffOracle plain(problem);
  const CountedOracle counted(plain);
  fisher_at({}, problem, problem.initial_outer(), {.y = some_y(problem), .steps = 12}, &counted);
  EXPECT_EQ(counted.cost().hvps, 1);
  EXPECT_EQ(counted.cost().cross_products, 1);
  EXPECT_EQ(counted.cost().gradients, 13 + 12 + 1 + 1);  // of the solve, of scores, of f, and of the linearization
}

TEST(Fisher, SaysWhatItDifferentiatesAndWhatIsWrongWithIt) {
  const LogisticWeightsProblem problem;
  const at::Tensor x = problem.initial_outer();
  const Hypergradient h = fisher_at({}, problem, x, {.y = some_y(problem), .steps = 5});
  EXPECT_THAT(h.certificate.differentiates, HasSubstr("Fisher"));
  EXPECT_THAT(h.certificate.bias, HasSubstr("Hessian"));
  EXPECT_THAT(h.message, HasSubstr("40 scores along 5 inner steps"));
  EXPECT_FALSE(h.certificate.error_bound.has_value());
}

// Ridge without a damping on a weight that is not penalised: A may be singular.
class Unpenalised final : public TestProblem {
 public:
  Unpenalised() {
    outer_layout_ = base_.outer_layout(), inner_layout_ = base_.inner_layout();
    x0_ = base_.initial_outer(), y0_ = base_.initial_inner(x0_, 0);
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return base_.inner_loss(x, y, b);
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& b) const override {
    return base_.outer_loss(x, y, b);
  }
  int64_t inner_samples() const override { return base_.inner_samples(); }
  at::Tensor inner_outputs(const at::Tensor& y, const Batch& b) const override { return base_.inner_outputs(y, b); }
  bool has_inner_likelihood() const override { return true; }
  Likelihood inner_likelihood(const at::Tensor& x, const Batch& b) const override {
    Likelihood likelihood = base_.inner_likelihood(x, b);
    likelihood.ridge = at::zeros_like(likelihood.ridge);
    return likelihood;
  }

 private:
  LogisticWeightsProblem base_;
};

TEST(Fisher, AsksForDampingWhereThereIsNoRidge) {
  const Unpenalised problem;
  const at::Tensor x = problem.initial_outer();
  const Hypergradient bad = fisher_at({.damping = 0.0}, problem, x, {.y = some_y(problem), .steps = 5});
  EXPECT_EQ(bad.grade, Grade::kBad);
  EXPECT_THAT(bad.message, HasSubstr("damping"));
  EXPECT_EQ(fisher_at({}, problem, x, {.y = some_y(problem), .steps = 5}).grade, Grade::kOk);
}

TEST(Fisher, RefusesWhatItCannotServe) {
  const QuadraticProblem quadratic;
  EXPECT_THAT(Fisher().objections(quadratic, rule_solver({}, 3)).at(0), HasSubstr("likelihood"));
  const LogisticWeightsProblem logistic;
  EXPECT_TRUE(Fisher().objections(logistic, rule_solver({}, 3)).empty());
  EXPECT_THROW(Fisher({.window = 0}), Error);
  EXPECT_THROW(Fisher({.smoothing = 1.0}), Error);
  EXPECT_THROW(Fisher({.damping = -1.0}), Error);
  EXPECT_THROW(Fisher({.scores = -1}), Error);
  EXPECT_THROW(Fisher({.steps = -1}), Error);
  EXPECT_THROW(Fisher({.form = Form::kWindow, .overlap = true}), Error);
}

TEST(Fisher, IsReadFromItsKeys) {
  const char* keys = R"(
form = "dense"
labels = "enumerated"
scores = 3
steps = 7
window = 9
smoothing = 0.5
damping = 0.1
overlap = true
)";
  Section section = Config::parse(keys, "test.toml").root();
  FisherOptions options;
  read(section, options);
  section.finish();
  EXPECT_EQ(options.form, Form::kDense);
  EXPECT_EQ(options.labels, Labels::kEnumerated);
  EXPECT_EQ(options.scores, 3);
  EXPECT_EQ(Fisher(options).trajectory().last, 7);
  EXPECT_EQ(options.window, 9);
  EXPECT_EQ(options.smoothing, 0.5);
  EXPECT_EQ(options.damping, 0.1);
  EXPECT_TRUE(options.overlap);
}

}  // namespace
}  // namespace bilevel::fisher_test
