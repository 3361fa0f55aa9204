#include "tasks/reweight.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "bilevel/algorithm/double_loop.h"
#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/linear/cg.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/outer/adam.h"
#include "bilevel/run/driver.h"
#include "tasks/reweight_report.h"
#include "tasks/supervised.h"

namespace bilevel::reweight_test {
namespace {

using testing::HasSubstr;

constexpr int64_t kN = 600, kM = 40, kD = 30, kC = 3, kSources = 5;

double number(const at::Tensor& tensor) { return tensor.item<double>(); }

/// Three clouds, in so many dimensions that few samples do not tell where they are; source 4 calls most samples by the next
/// class, the others are wrong in 0, 5, 10, 15 % of the cases.
ReweightData data(uint64_t seed = 0, bool random_labels = false) {
  const Stream stream(seed, "reweight test");
  const auto cloud = [&](int64_t t, int64_t n) {
    Dataset set;
    Draw draw = stream.at(t);
    set.labels = draw.integers(kC, {n});
    set.features = draw.normal({n, kD}) + 2.5 * at::one_hot(set.labels, kD);
    set.class_names = {"ash", "birch", "cedar"};
    return set;
  };
  ReweightData data;
  data.noisy = cloud(0, kN);
  data.trusted = cloud(1, kM);
  data.test = cloud(2, 600);
  data.truth = data.noisy.labels;
  data.noisy.sources = at::arange(kN).remainder(kSources);
  data.noisy.source_names = {"a", "b", "c", "d", "e"};
  Draw draw = stream.at(3);
  const at::Tensor rate =
      random_labels ? at::ones({kSources}, at::kDouble) : at::tensor({0.0, 0.05, 0.1, 0.15, 0.85}, at::kDouble);
  const at::Tensor wrong = draw.uniform({kN}) < rate.index_select(0, data.noisy.sources);
  const at::Tensor other = random_labels ? draw.integers(kC, {kN}) : (data.truth + 1).remainder(kC);
  data.noisy.labels = at::where(wrong, other, data.truth);
  return data;
}

TEST(Reweight, FindsTheBadSourceAndBeatsUsingAllData) {
  const ReweightData given = data();
  const ReweightResult result = reweight(given, {});
  for (int64_t s = 0; s < kSources - 1; ++s) EXPECT_GT(result.sources[s].weight, 3 * result.sources[kSources - 1].weight) << s;
  EXPECT_GT(*result.row("learned").accuracy, *result.row("all").accuracy + 0.02);
  EXPECT_GT(*result.row("learned").accuracy, *result.row("oracle").accuracy - 0.02);
  EXPECT_EQ(result.recommended, "learned");
  EXPECT_EQ(result.warning, "");
  EXPECT_GT(*result.rank_correlation, 0.7);
  EXPECT_GT(result.auc.at("suspicion"), 0.9);
  for (int64_t s = 0; s < kSources; ++s) {
    EXPECT_NEAR(result.sources[s].error_rate, *result.sources[s].true_error_rate, 0.1) << s;
    EXPECT_EQ(result.sources[s].samples, kN / kSources);
    EXPECT_GT(result.sources[s].spread, 0) << s;
  }
  for (const ReweightRow& row : result.rows) EXPECT_LE(row.stationarity, 1e-3) << row.slug;
  // "divided by their mean": over the noisy and the trusted samples together.
  EXPECT_NEAR(number(result.weights.sum()) + kM * result.trusted_weight, kN + kM, 1e-3);
  EXPECT_GT(result.cost.seconds, 0);
  EXPECT_GE(result.cost.peak_bytes, (kN + kM) * kD * 8);
  EXPECT_GT(result.cost.hvps, 0);
}

// With few trusted samples and rough fits, a fit that begins where all of them were known remembers those that are held back.
TEST(Reweight, JudgesTheTrustedSamplesAloneOnWhatTheyHaveNotSeen) {
  double held_back = 0, tested = 0;
  constexpr int kSeeds = 6;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    const ReweightResult result = reweight(data(seed), {});
    held_back += result.row("trusted").held_back_accuracy / kSeeds;
    tested += *result.row("trusted").accuracy / kSeeds;
  }
  // Trained on a fifth less, so no better than on the test set: 0.06 is two and a half standard errors of 240 samples at 84 %.
  EXPECT_LT(held_back, tested + 0.06);
  EXPECT_GT(held_back, tested - 0.15);
}

// The grouped estimator, its coarse linear solves and the preconditioners are shortcuts on one way: that of the plain double
// loop.
TEST(Reweight, TakesTheWayOfAPlainDoubleLoop) {
  const ReweightData given = data();
  ReweightOptions options;
  options.signal = -1e9;  // all ten steps
  const at::Tensor x = reweight(given, options).x;

  SupervisedOptions supervised;
  supervised.dtype = at::kDouble;
  supervised.outputs = kC;
  supervised.l2 = options.ridge;
  supervised.hyperparameters = {{.kind = Hyperparameter::Kind::kSourceWeight}};
  SupervisedData plain;
  plain.inner = {given.noisy.features, given.noisy.labels};
  plain.outer = {given.trusted.features, given.trusted.labels};
  plain.sources = given.noisy.sources;
  const SupervisedProblem problem(supervised, plain);
  const AutodiffOracle oracle(problem);
  CgOptions cg;
  cg.iterations = 200;
  cg.tolerance = 1e-12;
  LbfgsOptions lbfgs;
  lbfgs.tolerance = 1e-8;
  OuterAdamOptions adam;
  adam.lr = options.lr;
  adam.shared = true;
  const DoubleLoop loop(oracle, std::make_shared<Lbfgs>(lbfgs), std::make_shared<Implicit>(std::make_unique<Cg>(cg)),
                        std::make_shared<OuterAdam>(adam), {});
  DriverOptions driver;
  driver.steps = 10;
  const at::Tensor expected = Driver(loop, driver).run(loop.init()).state.tensor("x");
  EXPECT_GT(number(expected.norm()), 1.0);
  EXPECT_LT(number((x - expected).norm() / expected.norm()), 0.01);
}

TEST(Reweight, WarnsWhereTheLabelsSayNothing) {
  ReweightOptions options;
  for (const char* by : {"source", "sample"}) {
    options.by = by;
    const ReweightResult result = reweight(data(1, /*random_labels=*/true), options);
    EXPECT_EQ(result.recommended, "trusted") << by;
    EXPECT_THAT(result.warning, HasSubstr("does not beat the trusted samples alone")) << by;
  }
}

TEST(Reweight, RanksSamplesByThreeWaysAndTogether) {
  ReweightOptions options;
  options.by = "sample";
  const ReweightResult result = reweight(data(), options);
  ASSERT_EQ(result.x.sizes(), std::vector<int64_t>{kN});
  double best = 0;
  for (const char* name : {"trusted", "self-confidence", "learned"}) {
    EXPECT_GT(result.auc.at(name), 0.7) << name;
    best = std::max(best, result.auc.at(name));
  }
  EXPECT_GT(result.auc.at("combined"), best);
  EXPECT_GT(*result.row("learned").accuracy, *result.row("all").accuracy);
  EXPECT_EQ(result.recommended, "learned");
}

TEST(Reweight, GivesTheSameBitsAgainAndDependsOnTheSeed) {
  ReweightOptions options;
  const ReweightResult first = reweight(data(), options), again = reweight(data(), options);
  EXPECT_TRUE(first.x.equal(again.x));
  EXPECT_TRUE(first.suspicion.equal(again.suspicion));
  EXPECT_TRUE(first.row("learned").y.equal(again.row("learned").y));
  options.seed = 1;
  EXPECT_FALSE(first.suspicion.equal(reweight(data(), options).suspicion));
}

TEST(Reweight, DoesWithoutTestSetAndTruth) {
  ReweightData given = data();
  given.test = {};
  given.truth = at::Tensor();
  const ReweightResult result = reweight(given, {});
  EXPECT_FALSE(result.row("learned").accuracy.has_value());
  EXPECT_TRUE(result.auc.empty());
  EXPECT_FALSE(result.rank_correlation.has_value());
  EXPECT_FALSE(result.sources[0].true_error_rate.has_value());
  EXPECT_GT(result.row("learned").held_back_accuracy, 0.8);
}

TEST(Reweight, EndsWhenInterrupted) {
  const std::atomic<bool> interrupt = true;
  ReweightWatch watch;
  watch.interrupt = &interrupt;
  EXPECT_THROW(reweight(data(), {}, watch), Interrupted);
}

TEST(Reweight, RefusesDataThatCannotServe) {
  const auto message = [](const ReweightData& given, const ReweightOptions& options) -> std::string {
    try {
      reweight(given, options);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  ReweightData given = data();
  given.trusted = given.trusted.select(at::arange(9));
  EXPECT_THAT(message(given, {}), HasSubstr("at least 10 trusted samples are needed, got 9"));
  given = data();
  given.noisy.labels = at::zeros({kN}, at::kLong);
  given.trusted.labels = at::zeros({kM}, at::kLong);
  EXPECT_THAT(message(given, {}), HasSubstr("one class"));
  given = data();
  given.noisy.sources = at::Tensor();
  EXPECT_THAT(message(given, {}), HasSubstr("--by sample"));
  given = data();
  given.trusted.features = given.trusted.features.narrow(1, 0, 2);
  EXPECT_THAT(message(given, {}), HasSubstr("the trusted samples have 2 features, the others 30"));
  given = data();
  given.noisy.source_names.emplace_back("gone");
  EXPECT_THAT(message(given, {}), HasSubstr("\"gone\" has no samples"));
  ReweightOptions options;
  options.model.kind = "cnn";
  EXPECT_THAT(message(data(), options), HasSubstr("a cnn needs images"));
  options = {};
  options.by = "row";
  options.steps = 0;
  options.folds = 1;
  EXPECT_THAT(message(data(), options),
              testing::AllOf(HasSubstr("by = \"row\""), HasSubstr("steps = 0"), HasSubstr("folds = 1")));
}

TEST(RowsToLabel, AsksForTheMostDoubtedAndForARandomSampleOfEachSource) {
  const ReweightData given = data();
  const std::vector<LabelRequest> requests = rows_to_label(given.noisy, {}, 20);
  std::map<std::string, std::map<std::string, int64_t>> counts;
  std::map<int64_t, int64_t> seen;
  int64_t doubted_wrong = 0;
  const at::Tensor wrong = given.truth != given.noisy.labels;
  for (const LabelRequest& request : requests) {
    ++counts[request.source][request.reason];
    ++seen[request.row];
    EXPECT_EQ(request.source, given.noisy.source_names[given.noisy.sources[request.row].item<int64_t>()]);
    if (request.reason == "doubted" && request.source != "e") doubted_wrong += wrong[request.row].item<bool>();
  }
  ASSERT_EQ(counts.size(), static_cast<size_t>(kSources));
  for (const auto& [source, reasons] : counts) {
    EXPECT_EQ(reasons.at("doubted"), 10) << source;
    EXPECT_EQ(reasons.at("random"), 10) << source;
  }
  for (const auto& [row, times] : seen) EXPECT_EQ(times, 1) << row;
  // Of the four better sources about 36 labels are wrong, 7.5 %; of 40 that were not chosen 3 would be.
  EXPECT_GT(doubted_wrong, 12);
}

TEST(RankCorrelation, IsThatOfScipyWithTiesToo) {
  // scipy.stats.spearmanr(a, b).statistic, SciPy 1.17.1
  EXPECT_NEAR(rank_correlation(at::tensor({0.3, 1.2, -0.7, 1.2, 2.5, 0.3, 0.3, 4.0}, at::kDouble),
                               at::tensor({1.0, 2.0, 0.5, 3.0, 2.0, -1.0, 2.0, 0.7}, at::kDouble)),
              0.40252368434130215, 1e-14);
  EXPECT_NEAR(
      rank_correlation(at::tensor({3.1, 0.2, 9.0, 4.4, -2.0}, at::kDouble), at::tensor({1.0, 2.5, 3.5, 3.0, 0.1}, at::kDouble)),
      0.9, 1e-14);
}

TEST(MeanRows, GivesMeanAndStandardErrorOverTheSeeds) {
  std::vector<ReweightResult> results(3);
  const double accuracies[] = {0.7, 0.8, 0.75};
  for (size_t k = 0; k < 3; ++k) {
    ReweightRow row;
    row.slug = "learned";
    row.accuracy = accuracies[k];
    results[k].rows.push_back(row);
  }
  const std::vector<TableRow> rows = mean_rows(results);
  ASSERT_EQ(rows.size(), 1U);
  EXPECT_NEAR(rows[0].accuracy, 0.75, 1e-12);
  EXPECT_NEAR(rows[0].standard_error.value(), 0.05 / std::sqrt(3.0), 1e-12);  // numpy.std(a, ddof=1) = 0.05
  results.resize(1);
  EXPECT_FALSE(mean_rows(results)[0].standard_error.has_value());
}

}  // namespace
}  // namespace bilevel::reweight_test
