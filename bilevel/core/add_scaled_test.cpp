#include "bilevel/core/add_scaled.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace bilevel {
namespace {

TEST(AddScaled, EqualsTheOperationsOfTensorsForShortAndLongOnesAndForViews) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    for (const int64_t size : {1, 7, 4096, 5000}) {
      const at::Tensor x = at::arange(size, dtype).sin(), y = at::arange(size, dtype).cos();
      const at::Tensor sum = y.clone(), product = y.clone();
      add_scaled(sum, -0.3, x);
      scale(product, 2.5);
      EXPECT_TRUE(at::allclose(sum, y - 0.3 * x, 1e-6, 1e-6)) << size;
      EXPECT_TRUE(at::allclose(product, y * 2.5, 1e-6, 1e-6)) << size;
    }
  }
  const at::Tensor table = at::zeros({3, 2}, at::kDouble), column = table.select(1, 0);
  add_scaled(column, 2.0, at::ones({3}, at::kDouble));
  scale(column, 0.5);
  EXPECT_EQ(table.sum().item<double>(), 3.0);
}

}  // namespace
}  // namespace bilevel
