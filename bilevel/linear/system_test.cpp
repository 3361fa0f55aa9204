#include "bilevel/linear/system.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/systems_for_tests.h"

namespace bilevel {
namespace {

using namespace test;

TEST(System, FindsTheSmallestEigenvalueOfATridiagonalMatrix) {
  for (const int64_t n : {1, 2, 7, 60}) {
    const at::Tensor diagonal = vector(n, 11), off = vector(n, 12);
    at::Tensor T = diagonal.diag();
    for (int64_t i = 0; i + 1 < n; ++i) {
      T[i][i + 1] = off[i];
      T[i + 1][i] = off[i];
    }
    const double expected = at::linalg_eigvalsh(T)[0].item<double>();
    for (const double shift : {0.0, 50.0, -3.0}) {
      EXPECT_NEAR(smallest_eigenvalue(numbers(diagonal + shift), numbers(off.square())), expected + shift,
                  1e-13 * (std::abs(expected) + std::abs(shift)))
          << n;
    }
  }
  // Decoupled blocks, each with its own.
  EXPECT_NEAR(smallest_eigenvalue({2, 3, 0.5}, {0, 0}), 0.5, 1e-15);
  EXPECT_NEAR(smallest_eigenvalue({1, 1, 1, 1}, {0, 0.25, 0}), 0.5, 1e-15);
}

TEST(System, RefusesABlockWhereTheProductsTakeVectorsOnly) {
  const at::Tensor M = symmetric({1, 2, 3});
  EXPECT_THROW(Cg({}).solve(product_with(M), vector(6).view({2, 3}), {}), Error);
  Operator A = product_with(M);
  A.blocks = true;
  EXPECT_THROW(Cg({}).solve(A, vector(8).view({2, 4}), {}), Error);
  EXPECT_THROW(Cg({}).solve(A, vector(6).view({2, 3}), vector(3)), Error);
}

TEST(System, GivesAnEmptyBlockBack) {
  Operator A = product_with(symmetric({1, 2, 3}));
  A.blocks = true;
  const auto result = Cg({}).solve(A, at::zeros({0, 3}, at::kDouble), {});
  EXPECT_EQ(result.solution.size(0), 0);
  EXPECT_EQ(result.status, Status::kConverged);
}

}  // namespace
}  // namespace bilevel
