#include "bilevel/problem/partition.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <set>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

TEST(Partition, CutsTheSamplesIntoBatchesThatDifferByOneAtMost) {
  const Partition batches(103, 10, Stream(1, "cut"));
  ASSERT_EQ(batches.count(), 11);
  std::multiset<int64_t> all;
  for (int64_t k = 0; k < batches.count(); ++k) {
    const at::Tensor batch = batches.samples(k);
    EXPECT_TRUE(batch.numel() == 9 || batch.numel() == 10);
    for (int64_t i = 0; i < batch.numel(); ++i) all.insert(batch[i].item<int64_t>());
  }
  EXPECT_EQ(all.size(), 103u);
  for (int64_t i = 0; i < 103; ++i) EXPECT_EQ(all.count(i), 1u) << i;
}

TEST(Partition, ItsWeightsMakeTheMeanOverBatchesTheMeanOverSamples) {
  const Partition batches(23, 5, Stream(2, "cut"));
  const at::Tensor values = at::arange(23, at::kDouble).square();
  double mean = 0;
  for (int64_t k = 0; k < batches.count(); ++k) {
    mean += batches.weight(k) * values.index_select(0, batches.samples(k)).mean().item<double>() /
            static_cast<double>(batches.count());
  }
  EXPECT_NEAR(mean, values.mean().item<double>(), 1e-12 * mean);
}

TEST(Partition, GivesEachBatchOnceAnEpochInAnOrderThatIsAFunctionOfTheStep) {
  const Partition batches(40, 8, Stream(3, "cut"));
  std::vector<int64_t> order;
  bool differs = false;
  for (int64_t epoch = 0; epoch < 20; ++epoch) {
    std::set<int64_t> seen;
    for (int64_t i = 0; i < 5; ++i) {
      order.push_back(batches.number(5 * epoch + i));
      seen.insert(order.back());
      differs = differs || order.back() != order[static_cast<size_t>(i)];
    }
    EXPECT_EQ(seen.size(), 5u);
  }
  EXPECT_TRUE(differs);
  const Partition again(40, 8, Stream(3, "cut"));
  for (const int64_t t : {99, 3, 50, 51, 0}) EXPECT_EQ(again.number(t), order[static_cast<size_t>(t)]) << t;
}

TEST(Partition, IsAllSamplesWhereTheBatchIs) {
  for (const int64_t size : {0, 12}) {
    const Partition whole(12, size, Stream(4, "cut"));
    EXPECT_EQ(whole.count(), 1);
    EXPECT_FALSE(whole.samples(whole.number(7)).defined());
    EXPECT_EQ(whole.weight(0), 1.0);
  }
  EXPECT_THROW(Partition(12, 13, Stream(4, "cut")), Error);
  EXPECT_THROW(Partition(12, -1, Stream(4, "cut")), Error);
}

}  // namespace
}  // namespace bilevel
