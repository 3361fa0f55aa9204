#include "bilevel/core/vectors.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace bilevel {
namespace {

TEST(Vectors, EqualTheOperationsOfTensorsForShortAndLongOnesAndForViews) {
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
    for (const int64_t size : {1, 7, 4096, 5000}) {
      const at::Tensor x = at::arange(size, dtype).sin(), y = at::arange(size, dtype).cos() + 0.1;
      const at::Tensor sum = y.clone(), product = y.clone();
      add_scaled(sum, -0.3, x);
      scale(product, 2.5);
      EXPECT_TRUE(at::allclose(sum, y - 0.3 * x, 1e-6, 1e-6)) << size;
      EXPECT_TRUE(at::allclose(product, y * 2.5, 1e-6, 1e-6)) << size;
      EXPECT_TRUE(at::allclose(sum_of(y, -0.3, x), y - 0.3 * x, 1e-6, 1e-6)) << size;
      const double tolerance = dtype == at::kFloat ? 1e-5 : 1e-13;
      const at::Tensor X = x.to(at::kDouble), Y = y.to(at::kDouble);
      EXPECT_NEAR(dot_of(x, y), (X * Y).sum().item<double>(), tolerance * X.norm().item<double>() * Y.norm().item<double>())
          << size;
      EXPECT_NEAR(norm_of(y), Y.norm().item<double>(), tolerance * Y.norm().item<double>()) << size;
      EXPECT_NEAR(max_norm_of(-y), Y.abs().max().item<double>(), tolerance) << size;
    }
  }
  const at::Tensor table = at::zeros({3, 2}, at::kDouble), column = table.select(1, 0);
  add_scaled(column, 2.0, at::ones({3}, at::kDouble));
  scale(column, 0.5);
  EXPECT_EQ(table.sum().item<double>(), 3.0);
  EXPECT_EQ(dot_of(column, at::ones({3}, at::kDouble)), 3.0);
  EXPECT_EQ(max_norm_of(at::Tensor()), 0.0);
}

TEST(Vectors, ResultsCarryNoGraph) {
  for (const int64_t size : {3, 5000}) {
    const at::Tensor x = at::ones({size}, at::kDouble).requires_grad_(true);
    EXPECT_FALSE(sum_of(x, 2.0, x).requires_grad()) << size;
  }
}

}  // namespace
}  // namespace bilevel
