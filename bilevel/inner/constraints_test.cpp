#include "bilevel/inner/constraints.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"

namespace bilevel {
namespace {

at::Tensor t(std::initializer_list<double> values) { return at::tensor(std::vector<double>(values), at::kDouble); }
const double kInf = std::numeric_limits<double>::infinity();

TEST(ProximalMap, IsSoftThresholdingAndClampingWithoutEqualities) {
  const at::Tensor v = t({3.0, -0.2, 0.5, -4.0, 0.1});
  EXPECT_TRUE(at::allclose(ProximalMap({.l1 = t({0.5})}, v).apply(v, 1.0), t({2.5, 0, 0, -3.5, 0}), 0, 1e-15));
  EXPECT_TRUE(at::equal(ProximalMap({.l1 = t({0.5})}, v).apply(v, 1.0).ne(0).to(at::kDouble), t({1, 0, 0, 1, 0})));
  EXPECT_TRUE(at::equal(ProximalMap({.lower = t({-1.0}), .upper = t({0.3})}, v).apply(v, 2.0), t({0.3, -0.2, 0.3, -1.0, 0.1})));
  const at::Tensor both = ProximalMap({.lower = t({-1}), .upper = t({0.3}), .l1 = t({0.05, 0.5, 0, 0.5, 0})}, v).apply(v, 1.0);
  EXPECT_TRUE(at::equal(both, t({0.3, 0, 0.3, -1.0, 0.1})));
  EXPECT_TRUE(at::equal(ProximalMap({}, v).apply(v, 1.0), v));
  EXPECT_DOUBLE_EQ(ProximalMap({.l1 = t({0.5})}, v).penalty(v), 0.5 * 7.8);
}

// y = P_η(v) on C exactly where (v − y)/η − ∂h(y) lies in the normal cone: v − y = η l1 sign(y) + Aᵀμ + what bounds push.
TEST(ProximalMap, SatisfiesItsOptimalityConditionsWithEqualities) {
  Draw draw = Stream(3, "prox").at(0);
  for (int trial = 0; trial < 50; ++trial) {
    const int64_t d = 7, m = 1 + trial % 3;
    const at::Tensor A = draw.normal({m, d}), inside = 0.5 * draw.uniform({d}), v = 2 * draw.normal({d});
    const double eta = 0.3;
    const bool penalised = trial % 2 == 0;
    InnerConstraints c{.lower = t({-0.6}), .upper = t({0.7}), .equality = A, .equality_rhs = A.mv(inside)};
    if (penalised) c.l1 = t({0.4});
    const ProximalMap map(c, v);
    const at::Tensor y = map.apply(v, eta);
    EXPECT_LT(map.infeasibility(y), 1e-13) << trial;
    EXPECT_TRUE(y.ge(-0.6).logical_and(y.le(0.7)).all().item<bool>());
    // Multipliers of the equalities from the elements that are free, then the signs of the rest.
    at::Tensor pull = v - y;
    if (penalised) pull = pull - eta * 0.4 * y.sign();
    at::Tensor free = y.gt(-0.6).logical_and(y.lt(0.7));
    if (penalised) free = free.logical_and(y.ne(0));
    const at::Tensor F = free.nonzero().squeeze(1);
    if (F.size(0) < m) continue;  // the multipliers are not determined
    const at::Tensor mu = at::linalg_pinv(A.index_select(1, F).t()).mv(pull.index_select(0, F));
    const at::Tensor rest = pull - A.t().mv(mu);
    for (int64_t j = 0; j < d; ++j) {
      const double r = rest[j].item<double>(), yj = y[j].item<double>();
      if (yj == -0.6) {
        EXPECT_LE(r, 1e-12);
      } else if (yj == 0.7) {
        EXPECT_GE(r, -1e-12);
      } else if (yj == 0 && penalised) {
        EXPECT_LE(std::abs(r), eta * 0.4 + 1e-12);
      } else {
        EXPECT_NEAR(r, 0, 1e-12) << trial;
      }
    }
  }
}

TEST(ProximalMap, ProjectsOntoTheSimplex) {
  // Projection of (0.8, 0.5, −1) onto {y ≥ 0, Σ y = 1}: subtract 0.15 from the two that stay.
  const at::Tensor v = t({0.8, 0.5, -1.0});
  const ProximalMap map({.lower = t({0.0}), .equality = at::ones({1, 3}, at::kDouble), .equality_rhs = t({1.0})}, v);
  const at::Tensor y = map.apply(v, 1.0);
  EXPECT_TRUE(at::allclose(y, t({0.65, 0.35, 0.0}), 0, 1e-14));
  EXPECT_EQ(y[2].item<double>(), 0.0);
}

TEST(ProximalMap, ItsResidualIsTheGradientWhereNothingBinds) {
  const at::Tensor y = t({0.2, -0.1}), g = t({0.3, 0.4});
  for (const double eta : {0.1, 0.01}) {
    EXPECT_TRUE(at::allclose(ProximalMap({.lower = t({-kInf}), .upper = t({5})}, y).residual(y, g, eta), g));
    // At the lower bound a gradient that pushes below it is no residual.
    EXPECT_EQ(ProximalMap({.lower = y}, y).residual(y, g, eta).norm().item<double>(), 0.0);
  }
}

TEST(ProximalMap, SaysWhatIsWrongWithConstraints) {
  const at::Tensor y = t({0.0, 0.0});
  EXPECT_THROW(ProximalMap({.lower = t({1.0}), .upper = t({0.0})}, y), Error);
  EXPECT_THROW(ProximalMap({.l1 = t({-1.0})}, y), Error);
  EXPECT_THROW(ProximalMap({.lower = t({1.0, 2.0, 3.0})}, y), Error);
  EXPECT_THROW(ProximalMap({.equality = at::ones({1, 2}, at::kDouble)}, y), Error);
  // Σ y = 5 within [0, 1]² is empty.
  const ProximalMap empty({.lower = t({0}), .upper = t({1}), .equality = at::ones({1, 2}, at::kDouble), .equality_rhs = t({5})},
                          y);
  EXPECT_GT(empty.infeasibility(empty.apply(y, 1.0)), 2.9);
}

}  // namespace
}  // namespace bilevel
