#include "tasks/tune.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "bilevel/algorithm/double_loop.h"
#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/linear/cg.h"
#include "bilevel/oracle/choice.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/outer/sgd.h"
#include "tasks/gram.h"

namespace bilevel {
namespace {

constexpr int64_t kSamples = 90, kFeatures = 7, kClasses = 3, kFolds = 4;

Samples made_up(const std::string& loss, uint64_t seed = 3) {
  Draw draw = Stream(seed, "tune test").at(0);
  const at::Tensor X = draw.normal({kSamples, kFeatures});
  const at::Tensor W = draw.normal({kClasses, kFeatures});
  const at::Tensor z = X.mm(W.t()) / 2 + draw.normal({kSamples, kClasses});
  if (loss == "softmax") return {X, z.argmax(1)};
  if (loss == "logistic") return {X, (z.select(1, 0) > 0).to(at::kLong)};
  return {X, z.select(1, 0).contiguous()};
}

CrossValidationOptions options_of(const std::string& loss, const std::string& per, const std::string& model = "linear") {
  CrossValidationOptions options;
  options.model.kind = model;
  options.model.hidden = {4};
  options.loss = loss;
  options.outputs = loss == "softmax" ? kClasses : 1;
  options.dtype = at::kDouble;
  const auto m = make_model(options.model, {kFeatures}, options.outputs);
  const bool by_class = per == "class";
  const at::Tensor columns = per == "feature" ? at::arange(kFeatures) : at::arange(kFeatures).remainder(2);
  std::vector<std::string> names = {"even", "odd"};
  if (per == "feature") names = {"a", "b", "c", "d", "e", "f", "g"};
  options.groups = strength_groups(*m, per, columns, by_class ? std::vector<std::string>{"x", "y", "z"} : names);
  options.start = 0.05;
  return options;
}

at::Tensor folds() { return at::arange(kSamples).remainder(kFolds); }

struct Solved {
  double F = 0;
  at::Tensor hypergradient, direct, y;
};

/// F and its hypergradient by the engine, solved to rounding.
Solved solved(const CrossValidation& problem, const at::Tensor& x, bool unroll = false) {
  const auto oracle = make_oracle(problem);
  std::shared_ptr<InnerSolver> solver;
  std::shared_ptr<Estimator> estimator;
  if (unroll) {
    RuleSolverOptions rule;
    rule.steps = 25;
    rule.lr = 0.1;
    SgdRuleOptions sgd;
    sgd.momentum = 0.5;
    solver = std::make_shared<RuleSolver>(std::make_unique<SgdRule>(sgd), rule);
    estimator = std::make_shared<Unrolled>();
  } else {
    LbfgsOptions lbfgs;
    lbfgs.tolerance = 1e-11;
    lbfgs.max_iterations = 2000;
    solver = std::make_shared<Lbfgs>(lbfgs);
    CgOptions cg;
    cg.iterations = 500;
    cg.tolerance = 1e-12;
    ImplicitOptions implicit;
    implicit.precondition = true;
    estimator = std::make_shared<Implicit>(std::make_unique<Cg>(cg), implicit);
  }
  DoubleLoopOptions loop;
  loop.start = unroll ? Start::kCold : Start::kWarm;
  const DoubleLoop algorithm(*oracle, solver, estimator, std::make_shared<OuterSgd>(OuterSgdOptions{}), loop);
  State state = algorithm.init(), after;
  state.set("x", x);
  const Hypergradient h = algorithm.hypergradient(state, &after);
  return {h.outer_loss, h.value, h.direct, after.tensor("y")};
}

void expect_differences(const CrossValidation& problem, bool unroll, const std::string& what) {
  Draw draw = Stream(5, "point").at(0);
  at::Tensor x = problem.initial_outer();
  x = x + draw.normal(x.sizes()) / 3;
  const Solved here = solved(problem, x, unroll);
  at::Tensor slopes = at::empty_like(x);
  for (int64_t j = 0; j < x.size(0); ++j) {
    const double h = 1e-4;
    at::Tensor up = x.clone(), down = x.clone();
    up[j] += h;
    down[j] -= h;
    slopes[j] = (solved(problem, up, unroll).F - solved(problem, down, unroll).F) / (2 * h);
  }
  const double norm = slopes.norm().item<double>();
  ASSERT_GT(norm, 1e-4) << what;
  EXPECT_LT((here.hypergradient - slopes).norm().item<double>(), 1e-4 * norm) << what;
  EXPECT_GT((here.direct - slopes).norm().item<double>(), 0.01 * norm) << what;  // the direct term alone would not do
}

TEST(CrossValidation, HypergradientEqualsDifferencesForEachLossAndGrouping) {
  for (const char* loss : {"softmax", "logistic", "squared"}) {
    for (const char* per : {"one", "group", "feature"}) {
      for (const double width : {0.0, 0.5}) {
        CrossValidationOptions options = options_of(loss, per);
        options.width = width;
        expect_differences(CrossValidation(options, made_up(loss), folds()), false, std::string(loss) + " per " + per);
      }
    }
  }
  expect_differences(CrossValidation(options_of("softmax", "class"), made_up("softmax"), folds()), false, "per class");
}

TEST(CrossValidation, HypergradientOfTrainingEqualsDifferencesWithAStepSizeAndForANetwork) {
  for (const char* model : {"linear", "mlp"}) {
    CrossValidationOptions options = options_of("softmax", "layer", model);
    options.step_size = true;
    options.step_start = 0.1;
    expect_differences(CrossValidation(options, made_up("softmax"), folds()), true, model);
  }
}

// Each fold by itself: a model trained on its samples alone, by a problem that knows nothing of folds.
TEST(CrossValidation, EqualsASeparateFitForEachFold) {
  const Samples data = made_up("softmax");
  const CrossValidation problem(options_of("softmax", "one"), data, folds());
  const at::Tensor x = at::full({1}, std::log(0.03), at::kDouble);
  const Solved together = solved(problem, x);
  const at::Tensor models = together.y.view({kFolds, -1});
  double loss = 0;
  for (int64_t k = 0; k < kFolds; ++k) {
    const at::Tensor in = (folds() != k).nonzero().squeeze(1), out = (folds() == k).nonzero().squeeze(1);
    SupervisedOptions options;
    options.outputs = kClasses;
    options.dtype = at::kDouble;
    options.l2 = 0.03;
    SupervisedData split;
    split.inner = {data.features.index_select(0, in), data.labels.index_select(0, in)};
    split.outer = {data.features.index_select(0, out), data.labels.index_select(0, out)};
    const SupervisedProblem alone(options, split);
    const auto oracle = make_oracle(alone);
    LbfgsOptions lbfgs;
    lbfgs.tolerance = 1e-11;
    lbfgs.max_iterations = 2000;
    const at::Tensor no_x = at::empty({0}, at::kDouble);
    const at::Tensor y = Lbfgs(lbfgs).solve(*oracle, no_x, 0, {alone.initial_inner(no_x, 0), {}, 0, 0}, {}).y;
    EXPECT_LT((models[k] - y).norm().item<double>(), 1e-8 * y.norm().item<double>()) << k;
    loss += oracle->outer_value(no_x, y, {}).item<double>() * static_cast<double>(out.size(0)) / kSamples;
  }
  EXPECT_NEAR(together.F, loss, 1e-10);
  const CrossValidation::Validation v = problem.validate(together.y);
  EXPECT_NEAR(v.loss, loss, 1e-10);
  EXPECT_GT(v.loss_error, 0);
}

// One pass for all folds against one pass for each, at any point.
TEST(CrossValidation, OnePassForAllFoldsEqualsAutodiffFoldByFold) {
  CrossValidationOptions options = options_of("softmax", "feature");
  options.width = 0.7;
  const CrossValidation problem(options, made_up("softmax"), folds());
  const auto native = make_oracle(problem, "native"), autodiff = make_oracle(problem, "autodiff");
  Draw draw = Stream(9, "point").at(0);
  const at::Tensor x = draw.normal({problem.outer_layout().size()}), y = draw.normal({problem.inner_layout().size()});
  const at::Tensor v = draw.normal({problem.inner_layout().size()});
  Batch some;
  some.samples = at::tensor({int64_t{0}, int64_t{89}, int64_t{40}});
  const auto near = [](const at::Tensor& a, const at::Tensor& b) {
    return (a - b).norm().item<double>() <= 1e-13 * b.norm().item<double>();
  };
  for (const Batch& batch : {Batch{}, some}) {
    const auto a = native->linearize_inner(x, y, batch), b = autodiff->linearize_inner(x, y, batch);
    EXPECT_TRUE(near(a->value(), b->value()));
    EXPECT_TRUE(near(a->residual(), b->residual()));
    EXPECT_TRUE(near(a->vjp(v).y, b->vjp(v).y));
    EXPECT_TRUE(near(a->vjp(v).x, b->vjp(v).x));
  }
  const Gradients p = native->outer(x, y, {}), q = autodiff->outer(x, y, {});
  EXPECT_TRUE(near(p.value, q.value));
  EXPECT_TRUE(near(p.y, q.y));
  EXPECT_TRUE(near(p.x, q.x));
}

TEST(CrossValidation, PriorKnowsNothingOfTheCommonStrength) {
  CrossValidationOptions options = options_of("softmax", "feature");
  options.width = 0.5;
  const CrossValidation problem(options, made_up("softmax"), folds());
  options.width = 0;
  const CrossValidation without(options, made_up("softmax"), folds());
  const at::Tensor y = Stream(9, "y").at(0).normal({problem.inner_layout().size()});
  const at::Tensor x = Stream(9, "x").at(0).normal({problem.outer_layout().size()});
  const auto term = [&](const at::Tensor& at) {
    return problem.outer_loss(at, y, {}).item<double>() - without.outer_loss(at, y, {}).item<double>();
  };
  const at::Tensor d = x - x.mean();
  EXPECT_NEAR(term(x), d.square().sum().item<double>() / (2 * 0.25 * kSamples), 1e-13);
  EXPECT_NEAR(term(x + 3), term(x), 1e-13);
}

TEST(StrengthGroups, GiveBiasesNoneAndEveryWeightItsOwn) {
  ModelOptions mlp;
  mlp.kind = "mlp";
  mlp.hidden = {2};
  const auto model = make_model(mlp, {3}, 2);
  const StrengthGroups groups = strength_groups(*model, "group", at::tensor({int64_t{1}, int64_t{0}, int64_t{1}}), {"a", "b"});
  EXPECT_EQ(groups.count(), 3);
  EXPECT_TRUE(groups.index.equal(at::tensor(std::vector<int64_t>{1, 0, 1, 1, 0, 1, -1, -1, 2, 2, 2, 2, -1, -1})));
  EXPECT_THROW(strength_groups(*model, "class", {}, {"a", "b"}), Error);
  EXPECT_THROW(strength_groups(*model, "group", at::zeros({2}, at::kLong), {"a"}), Error);
}

TEST(RandomFolds, SpreadEachClassEvenly) {
  const at::Tensor labels = at::arange(90).ge(70).to(at::kLong);
  const at::Tensor folds = random_folds(labels, true, 5, 1);
  for (int64_t k = 0; k < 5; ++k) {
    EXPECT_EQ((folds == k).sum().item<int64_t>(), 18);
    EXPECT_EQ(labels.masked_select(folds == k).sum().item<int64_t>(), 4);
  }
  EXPECT_FALSE(folds.equal(random_folds(labels, true, 5, 2)));
}

/// Few samples, many features of which four matter: a strength for each fits the folds' noise.
TuneData noisy(int64_t n, int64_t d, uint64_t seed) {
  Draw draw = Stream(seed, "noisy").at(0);
  const at::Tensor w = at::cat({at::full({4}, 1.0, at::kDouble), at::zeros({d - 4}, at::kDouble)}).unsqueeze(0);
  const auto dataset = [&](int64_t count) {
    Dataset set;
    set.features = draw.normal({count, d});
    set.labels = (set.features.mm(w.t()).squeeze(1) + draw.normal({count}) > 0).to(at::kLong);
    set.class_names = {"no", "yes"};
    return set;
  };
  TuneData data;
  data.train = dataset(n);
  data.test = dataset(2000);
  return data;
}

TEST(Tune, FindsTheMinimumOfTheCrossValidatedLossOfOneStrength) {
  const TuneData data = noisy(200, 20, 1);
  TuneOptions options;
  options.loss = "logistic";
  options.tolerance = 1e-6;
  options.inner_tolerance = 1e-8;
  const TuneResult result = tune(data, options);
  // A fine grid, by the engine's own inner solver: at no point less.
  CrossValidationOptions cv = options_of("logistic", "one");
  cv.groups.index = at::cat({at::zeros({20}, at::kLong), at::full({1}, -1, at::kLong)});
  const CrossValidation problem(cv, {data.train.features, data.train.labels}, random_folds(data.train.labels, true, 5, 0));
  double least = 1e9, best = 0;
  for (double log_lambda = -8; log_lambda < 2; log_lambda += 0.05) {
    const double F = solved(problem, at::full({1}, log_lambda, at::kDouble)).F;
    if (F < least) least = F, best = log_lambda;
  }
  const TuneRow& row = result.row("learned");
  EXPECT_LT(row.validation.loss, least + 1e-6);
  EXPECT_NEAR(std::log(row.strengths[0]), best, 0.05);
  EXPECT_GT(result.row("grid").validation.loss, row.validation.loss - 1e-6);
  EXPECT_GT(result.row("random").validation.loss, row.validation.loss - 1e-6);
  EXPECT_GE(result.row("grid").oracle_calls, row.oracle_calls);
}

TEST(Tune, GuardsManyStrengthsAgainstOverfittingTheFolds) {
  const TuneData data = noisy(120, 60, 2);
  TuneOptions options;
  options.loss = "logistic";
  options.per = "feature";
  options.compare = false;
  options.prior = "none";
  const TuneResult free = tune(data, options);
  options.prior = "auto";
  const TuneResult guarded = tune(data, options);
  const TuneRow &f = free.row("learned"), &g = guarded.row("learned");
  EXPECT_LT(f.validation.loss, 0.8 * g.validation.loss);  // what overfitting looks like from inside
  EXPECT_LT(*g.test_loss, *f.test_loss);                  // and from outside
  EXPECT_LT(*g.test_loss, *free.row("common").test_loss + 0.02);
  EXPECT_FALSE(free.warning.empty());
  EXPECT_EQ(guarded.widths.size(), 5u);
  EXPECT_TRUE(guarded.common_kept || guarded.width.has_value());
}

TEST(Tune, TellsStrengthsApartWhereItPays) {
  // Twenty columns that matter and twenty that do not, and samples enough to say so.
  Draw draw = Stream(4, "two kinds").at(0);
  const at::Tensor w = at::cat({draw.normal({20}), at::zeros({20}, at::kDouble)}).unsqueeze(0);
  TuneData data;
  data.train.features = draw.normal({300, 40});
  data.train.labels = data.train.features.mm(w.t()).squeeze(1) + 3 * draw.normal({300});
  data.test.features = draw.normal({3000, 40});
  data.test.labels = data.test.features.mm(w.t()).squeeze(1) + 3 * draw.normal({3000});
  data.column_groups = at::arange(40).ge(20).to(at::kLong);
  data.group_names = {"signal", "noise"};
  TuneOptions options;
  options.loss = "squared";
  options.per = "group";
  options.compare = false;
  const TuneResult result = tune(data, options);
  const TuneRow& learned = result.row("learned");
  ASSERT_EQ(learned.strengths.size(), 2u);
  EXPECT_GT(learned.strengths[1], 5 * learned.strengths[0]);
  EXPECT_LT(learned.validation.loss, result.row("common").validation.loss);
  EXPECT_LT(*learned.test_loss, *result.row("common").test_loss);
}

TEST(Tune, RefusesWhatCannotServe) {
  TuneOptions options;
  options.prior = "wide";
  EXPECT_THROW(tune(noisy(60, 6, 1), options), Error);
  options.prior = "auto";
  options.folds = 40;
  EXPECT_THROW(tune(noisy(60, 6, 1), options), Error);
  options.folds = 1;
  EXPECT_THROW(tune(noisy(60, 6, 1), options), Error);
}

}  // namespace
}  // namespace bilevel
