#include "bilevel/problem/batch.h"

#include <set>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

TEST(BatchPlan, FullHasNoSampleList) {
  EXPECT_TRUE(BatchPlan::full().is_full());
  EXPECT_FALSE(BatchPlan::full().samples(3).defined());
}

TEST(BatchPlan, CoversEachSampleExactlyOnceInAnEpochAndDropsWhatFillsNoBatch) {
  const BatchPlan plan = BatchPlan::shuffled(10, 3, Stream(1, "batches"));
  std::set<int64_t> left_out;
  for (int64_t epoch = 0; epoch < 20; ++epoch) {
    std::set<int64_t> seen;
    for (int64_t b = 0; b < 3; ++b) {
      const at::Tensor samples = plan.samples(3 * epoch + b);
      ASSERT_EQ(samples.sizes(), at::IntArrayRef({3}));
      for (int64_t i = 0; i < 3; ++i) EXPECT_TRUE(seen.insert(samples[i].item<int64_t>()).second);
    }
    ASSERT_EQ(seen.size(), 9u);
    EXPECT_GE(*seen.begin(), 0);
    EXPECT_LT(*seen.rbegin(), 10);
    for (int64_t i = 0; i < 10; ++i) {
      if (!seen.contains(i)) left_out.insert(i);
    }
  }
  EXPECT_GT(left_out.size(), 3u);  // reshuffled: not always the same one (a fair shuffle fails this once in 10¹⁰ seeds)
}

TEST(BatchPlan, IsAFunctionOfTheStepInWhateverOrderItIsAsked) {
  const BatchPlan forward = BatchPlan::shuffled(12, 4, Stream(7, "batches"));
  const BatchPlan backward = BatchPlan::shuffled(12, 4, Stream(7, "batches"));
  std::vector<at::Tensor> there;
  for (int64_t t = 0; t < 12; ++t) there.push_back(forward.samples(t));
  for (int64_t t = 12; t-- > 0;) EXPECT_TRUE(at::equal(backward.samples(t), there[static_cast<size_t>(t)])) << t;
  EXPECT_TRUE(at::equal(forward.samples(1), there[1]));
  EXPECT_FALSE(at::equal(there[0], there[3]));  // another epoch, another order
  EXPECT_FALSE(at::equal(BatchPlan::shuffled(12, 4, Stream(8, "batches")).samples(0), there[0]));
}

TEST(BatchPlan, FixedRowsComeRoundAgain) {
  const BatchPlan plan = BatchPlan::fixed(at::arange(6, at::kInt).view({3, 2}), 6);
  EXPECT_TRUE(at::equal(plan.samples(2), at::tensor(std::vector<int64_t>{4, 5}, at::TensorOptions(at::kLong))));
  EXPECT_TRUE(at::equal(plan.samples(301), plan.samples(1)));
  EXPECT_EQ(plan.samples(0).scalar_type(), at::kLong);
}

TEST(BatchPlan, RefusesWhatIsNoPlan) {
  EXPECT_THROW(BatchPlan::shuffled(3, 4, Stream(0, "b")), Error);
  EXPECT_THROW(BatchPlan::shuffled(3, 0, Stream(0, "b")), Error);
  EXPECT_THROW(BatchPlan::fixed(at::zeros({2, 2})), Error);
  EXPECT_THROW(BatchPlan::fixed(at::zeros({2}, at::kLong)), Error);
  EXPECT_THROW(BatchPlan::fixed(at::zeros({0, 2}, at::kLong)), Error);
  EXPECT_THROW(BatchPlan::fixed(at::full({1, 2}, -1, at::kLong)), Error);
  EXPECT_THROW(BatchPlan::fixed(at::full({1, 2}, 6, at::kLong), 6), Error);
  EXPECT_NO_THROW(BatchPlan::fixed(at::full({1, 2}, 5, at::kLong), 6));
  EXPECT_THROW(BatchPlan::full().samples(-1), Error);
}

}  // namespace
}  // namespace bilevel
