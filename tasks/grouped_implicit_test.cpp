#include "tasks/grouped_implicit.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/linear/cg.h"
#include "bilevel/oracle/autodiff.h"
#include "tasks/supervised.h"

namespace bilevel::grouped_implicit_test {
namespace {

constexpr int64_t kN = 40, kM = 15, kD = 4, kC = 3, kSources = 5;

Draw draw(int64_t t) { return Stream(5, "grouped implicit test").at(t); }

double number(const at::Tensor& tensor) { return tensor.item<double>(); }

double distance(const at::Tensor& a, const at::Tensor& b) { return number((a - b).norm() / b.norm()); }

class GroupedImplicitTest : public testing::Test {
 protected:
  static SupervisedOptions options() {
    SupervisedOptions options;
    options.dtype = at::kDouble;
    options.hyperparameters = {{.kind = Hyperparameter::Kind::kSourceWeight}};
    options.outputs = kC;
    options.l2 = 0.02;
    return options;
  }
  static SupervisedData data() {
    SupervisedData data;
    data.inner = {draw(0).normal({kN, kD}), draw(1).integers(kC, {kN})};
    data.outer = {draw(2).normal({kM, kD}), draw(3).integers(kC, {kM})};
    data.sources = at::arange(kN).remainder(kSources);
    return data;
  }
  static std::unique_ptr<Implicit> implicit() {
    CgOptions cg;
    cg.iterations = 200;
    cg.tolerance = 1e-12;
    return std::make_unique<Implicit>(std::make_unique<Cg>(cg));
  }
  EstimatorInput input() { return {oracle_, solver_, x_, solution_, {}, {}, {}}; }

  SupervisedProblem problem_{options(), data()};
  AutodiffOracle oracle_{problem_};
  Lbfgs solver_{[] {
    LbfgsOptions lbfgs;
    lbfgs.tolerance = 1e-10;
    return lbfgs;
  }()};
  at::Tensor x_ = draw(4).normal({kSources});
  InnerSolution solution_ = solver_.solve(oracle_, x_, 0, {problem_.initial_inner(x_, 0)}, {});
  std::vector<at::Tensor> groups_ = {at::tensor({0, 3, 6}, at::kLong), at::tensor({1, 2, 4, 5, 7, 8, 9}, at::kLong),
                                     at::tensor({10, 11, 12, 13, 14}, at::kLong)};  // of unequal sizes
};

TEST_F(GroupedImplicitTest, IsTheHypergradientOfTheWholeOuterSet) {
  std::vector<at::Tensor> history;
  const GroupedImplicit grouped(implicit(), groups_, BatchPlan::full(), history);
  const Hypergradient h = grouped.estimate(input()), whole = implicit()->estimate(input());
  EXPECT_GT(number(whole.value.norm()), 1e-3);
  EXPECT_LT(distance(h.value, whole.value), 1e-8);
  EXPECT_NEAR(h.outer_loss, whole.outer_loss, 1e-12);
  EXPECT_EQ(h.grade, Grade::kOk) << h.message;
  // The groups differ, so a mean that forgets their sizes would be another vector.
  EXPECT_GT(distance(history.back().mean(0), whole.value), 0.01);
}

TEST_F(GroupedImplicitTest, KeepsTheHypergradientOfEachGroup) {
  std::vector<at::Tensor> history;
  const GroupedImplicit grouped(implicit(), groups_, BatchPlan::full(), history);
  for (int64_t call = 0; call < 2; ++call) grouped.estimate(input());  // the second begins where the first has ended
  ASSERT_EQ(history.size(), 2U);
  for (const at::Tensor& found : history) {
    ASSERT_EQ(found.sizes(), (std::vector<int64_t>{3, kSources}));
    for (size_t g = 0; g < groups_.size(); ++g) {
      EstimatorInput in = input();
      in.outer_batch.samples = groups_[g];
      EXPECT_LT(distance(found[static_cast<int64_t>(g)], implicit()->estimate(in).value), 1e-8) << g;
    }
  }
}

TEST_F(GroupedImplicitTest, TakesItsProductsOnTheBatchOfTheStep) {
  const at::Tensor batches = at::stack({at::arange(0, 20), at::arange(20, 40)});
  std::vector<at::Tensor> history;
  const GroupedImplicit grouped(implicit(), groups_, BatchPlan::fixed(batches), history);
  EstimatorInput in = input();
  in.outer_batch.step = 1;
  const at::Tensor value = grouped.estimate(in).value;
  in.inner_batch.samples = batches[1];
  EXPECT_LT(distance(value, implicit()->estimate(in).value), 1e-8);
  EXPECT_GT(distance(value, implicit()->estimate(input()).value), 0.01);
}

TEST_F(GroupedImplicitTest, RefusesToHaveNoGroups) {
  std::vector<at::Tensor> history;
  EXPECT_THROW(GroupedImplicit(implicit(), {}, BatchPlan::full(), history), Error);
}

TEST(SignalShare, OnKnownNumbers) {
  // mean (2, 0), Σ_g ‖Γ_g − mean‖² = 2, over G (G − 1) = 2 and ‖mean‖² = 4.
  EXPECT_DOUBLE_EQ(signal_share(at::tensor({1.0, 0.0, 3.0, 0.0}, at::kDouble).view({2, 2})), 0.75);
  EXPECT_DOUBLE_EQ(signal_share(at::tensor({1.0, 2.0, 1.0, 2.0}, at::kDouble).view({2, 2})), 1.0);
  EXPECT_LT(signal_share(at::tensor({1.0, 0.1, -1.0, 0.1}, at::kDouble).view({2, 2})), 0.0);
  EXPECT_DOUBLE_EQ(signal_share(at::zeros({3, 2}, at::kDouble)), 0.0);
  EXPECT_DOUBLE_EQ(signal_share(at::ones({1, 2}, at::kDouble)), 1.0);
}

// E[share · ‖mean‖²] = ‖E Γ‖²: what is left after the noise is subtracted is the signal, no more and no less.
TEST(SignalShare, IsUnbiased) {
  constexpr int64_t kTrials = 4000, kGroups = 5;
  const at::Tensor signal = at::tensor({0.3, -0.2, 0.1}, at::kDouble), noise = at::tensor({1.0, 0.5, 2.0}, at::kDouble);
  const at::Tensor groups = signal + noise * draw(9).normal({kTrials, kGroups, 3});
  double sum = 0, squares = 0, naive = 0;
  for (int64_t k = 0; k < kTrials; ++k) {
    const double length = number(groups[k].mean(0).square().sum());
    const double estimate = signal_share(groups[k]) * length;
    sum += estimate;
    squares += estimate * estimate;
    naive += length;
  }
  const double mean = sum / kTrials, error = std::sqrt((squares / kTrials - mean * mean) / kTrials);
  const double truth = number(signal.square().sum());
  EXPECT_NEAR(mean, truth, 3 * error);
  EXPECT_GT(std::abs(naive / kTrials - truth), 10 * error);
}

}  // namespace
}  // namespace bilevel::grouped_implicit_test
