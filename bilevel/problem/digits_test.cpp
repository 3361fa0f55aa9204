#include "bilevel/problem/digits.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace bilevel {
namespace {

// Sums and counts of scikit-learn 1.7's load_digits.
TEST(Digits, AreThoseOfScikitLearnInTheSameOrder) {
  const at::Tensor pixels = digits().pixels.reshape({1797, 64}).to(at::kLong);
  EXPECT_EQ(pixels.sum().item<int64_t>(), 561718);
  EXPECT_EQ(pixels.mul(at::arange(64, at::kLong)).sum().item<int64_t>(), 17660653);
  EXPECT_EQ(pixels[1000].sum().item<int64_t>(), 268);
  EXPECT_EQ(pixels.min().item<int64_t>(), 0);
  EXPECT_EQ(pixels.max().item<int64_t>(), 16);
  const std::vector<int64_t> first = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1}, last = {9, 0, 8, 9, 8};
  for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(digits().labels[static_cast<int64_t>(i)].item<int64_t>(), first[i]);
  for (size_t i = 0; i < last.size(); ++i) EXPECT_EQ(digits().labels[static_cast<int64_t>(1792 + i)].item<int64_t>(), last[i]);
  const std::vector<int64_t> counts = {178, 182, 177, 183, 181, 182, 181, 179, 174, 180};
  for (int64_t k = 0; k < 10; ++k) EXPECT_EQ(digits().labels.eq(k).sum().item<int64_t>(), counts[static_cast<size_t>(k)]);
}

}  // namespace
}  // namespace bilevel
