#include "bilevel/linear/kronecker_inverse.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"

namespace bilevel::kronecker_inverse_test {
namespace {

constexpr int64_t kOut = 3, kIn = 4, kSize = kOut * (kIn + 1);

Layout dense_layer() { return Layout().add("layer.weight", {kOut, kIn}).add("layer.bias", {kOut}); }
at::Tensor normal(at::IntArrayRef shape, int64_t draw) { return Stream(0, "kronecker").at(draw).normal(shape); }
double distance(const at::Tensor& a, const at::Tensor& b) { return ((a - b).norm() / b.norm()).item<double>(); }

// Gradients at the outputs g [r, out] and inputs a [r, in], correlated: large inputs have small gradients.
struct Samples {
  at::Tensor g, a;
};
Samples samples(int64_t t, int64_t r = 6) {
  const at::Tensor size = normal({r, 1}, 3 * t).exp();
  return {normal({r, kOut}, 3 * t + 1).mm(normal({kOut, kOut}, -1)) / size,
          normal({r, kIn}, 3 * t + 2).mm(normal({kIn, kIn}, -2)) * size};
}
// g aᵀ row by row, then g.
at::Tensor scores(const Samples& s) { return at::cat({at::einsum("ri,rj->rij", {s.g, s.a}).flatten(1), s.g}, 1); }

at::Tensor with_one(const at::Tensor& a) { return at::cat({a, at::ones({a.size(0), 1}, a.options())}, 1); }
// Where in y the elements of the matrix [out, in + 1] are, row by row.
at::Tensor positions() {
  return at::cat({at::arange(kOut * kIn, at::kLong).view({kOut, kIn}), at::arange(kOut * kIn, kSize, at::kLong).unsqueeze(1)}, 1)
      .flatten();
}
at::Tensor in_order_of_y(const at::Tensor& of_matrix) {
  const at::Tensor to = positions().argsort();
  return of_matrix.index_select(0, to).index_select(1, to);
}
at::Tensor ridge() { return at::cat({at::full({kOut * kIn}, 0.3, at::kDouble), at::full({kOut}, 0.02, at::kDouble)}); }
at::Tensor rhs(int64_t d = kSize) { return normal({d}, 1000); }
at::Tensor solution(const at::Tensor& F, const at::Tensor& of_ridge) {
  return at::linalg_solve(F + at::diag(of_ridge), rhs(of_ridge.size(0)));
}

struct Factors {
  at::Tensor L, R;
  at::Tensor product() const { return in_order_of_y(at::kron(L, R)) / L.trace(); }
};
// By the definition, of gradients and inputs.
Factors factors(const Samples& s) {
  const at::Tensor a = with_one(s.a), heavy = s.g * a.norm(2, {1}, true), long_ = a * s.g.norm(2, {1}, true);
  return {heavy.t().mm(heavy), long_.t().mm(long_)};
}

TEST(KroneckerInverse, IsTheDenseInverseOfTheProductOfTheFactorsWithTheRidge) {
  KroneckerInverse tracker(0.9, dense_layer());
  at::Tensor L = at::zeros({kOut, kOut}, at::kDouble), R = at::zeros({kIn + 1, kIn + 1}, at::kDouble),
             F = at::zeros({kSize, kSize}, at::kDouble);
  for (int64_t t = 0; t < 4; ++t) {
    const Samples s = samples(t);
    tracker.take(scores(s));
    const Factors here = factors(s);
    L += here.L / 4, R += here.R / 4, F += scores(s).t().mm(scores(s)) / 4;
  }
  ASSERT_TRUE(tracker.settle(ridge()));
  const at::Tensor expected = solution(Factors{L, R}.product(), ridge());
  EXPECT_LT(distance(tracker.solve(rhs(), ridge()), expected), 1e-10);
  EXPECT_GT(distance(solution(F, ridge()), expected), 0.05) << "F itself would pass";
  EXPECT_GT(distance(rhs() / ridge(), expected), 0.05) << "the ridge alone would pass";
  EXPECT_GT(distance(rhs() / (F.diagonal() + ridge()), expected), 0.05) << "the diagonal would pass";
  // K-FAC's weights, the same for all samples, make another approximation.
  at::Tensor A = at::zeros_like(R), G = at::zeros_like(L);
  for (int64_t t = 0; t < 4; ++t) {
    const Samples s = samples(t);
    A += with_one(s.a).t().mm(with_one(s.a)) / 24, G += s.g.t().mm(s.g) / 4;
  }
  EXPECT_GT(distance(solution(in_order_of_y(at::kron(G, A)), ridge()), expected), 0.05);
}

TEST(KroneckerInverse, IsExactWhereInputsAndGradientsAreIndependent) {
  const Samples some = samples(0, 5);
  std::vector<at::Tensor> g, a;
  for (int64_t i = 0; i < 5; ++i) {
    for (int64_t j = 0; j < 5; ++j) g.push_back(some.g[i]), a.push_back(some.a[j]);
  }
  const Samples all{at::stack(g), at::stack(a)};
  KroneckerInverse tracker(0.9, dense_layer());
  ASSERT_TRUE(tracker.add({scores(all)}, ridge()));
  const at::Tensor F = scores(all).t().mm(scores(all)), expected = solution(F, ridge());
  EXPECT_LT(distance(tracker.solve(rhs(), ridge()), expected), 1e-10);
  // … and so are K-FAC's two factors.
  const at::Tensor A = with_one(all.a).t().mm(with_one(all.a)) / 25, G = all.g.t().mm(all.g);
  EXPECT_LT(distance(solution(in_order_of_y(at::kron(G, A)), ridge()), expected), 1e-10);
  EXPECT_GT(distance(rhs() / (F.diagonal() + ridge()), expected), 0.05) << "the diagonal would pass";
}

TEST(KroneckerInverse, SmoothsItsFactorsAfterTheFirstSolve) {
  const double beta = 0.8;
  KroneckerInverse tracker(beta, dense_layer());
  Factors mean = factors(samples(0));
  ASSERT_TRUE(tracker.add({scores(samples(0))}, ridge()));
  for (int64_t t = 1; t < 9; ++t) {
    ASSERT_TRUE(tracker.add({scores(samples(2 * t)), scores(samples(2 * t + 1))}, ridge()));
    for (const int64_t k : {2 * t, 2 * t + 1}) {
      const Factors here = factors(samples(k));
      mean = {beta * mean.L + (1 - beta) * here.L, beta * mean.R + (1 - beta) * here.R};
    }
    EXPECT_LT(distance(tracker.solve(rhs(), ridge()), solution(mean.product(), ridge())), 1e-10) << t;
  }
  EXPECT_GT(distance(solution(factors(samples(17)).product(), ridge()), solution(mean.product(), ridge())), 0.05);
}

TEST(KroneckerInverse, TakesPartialTracesOfScoresThatAreNoOuterProducts) {
  // A convolution with a bias, a weight without one, a vector of its own, and a scalar.
  const Layout layout =
      Layout().add("conv.weight", {2, 1, 3, 1}).add("conv.bias", {2}).add("free", {2, 4}).add("scale", {3}).add("s", {});
  const int64_t d = layout.size(), r = 5;
  const at::Tensor S = normal({r, d}, 5), delta = at::full({d}, 0.4, at::kDouble);
  KroneckerInverse tracker(0.9, layout);
  ASSERT_TRUE(tracker.add({S}, delta));
  at::Tensor F = at::zeros({d, d}, at::kDouble);
  const auto put = [&](const at::Tensor& where, const at::Tensor& M) {
    at::Tensor L = at::zeros({M.size(1), M.size(1)}, at::kDouble), R = at::zeros({M.size(2), M.size(2)}, at::kDouble);
    for (int64_t i = 0; i < r; ++i) L += M[i].mm(M[i].t()), R += M[i].t().mm(M[i]);
    F.index_put_({where.unsqueeze(1), where.unsqueeze(0)}, at::kron(L, R) / L.trace());
  };
  const at::Tensor of_conv =
      at::cat({at::arange(6, at::kLong).view({2, 3}), at::arange(6, 8, at::kLong).unsqueeze(1)}, 1).flatten();
  put(of_conv, S.index_select(1, of_conv).view({r, 2, 4}));
  put(at::arange(8, 16, at::kLong), S.narrow(1, 8, 8).view({r, 2, 4}));
  F.diagonal().narrow(0, 16, 4).copy_(S.narrow(1, 16, 4).square().sum(0));
  EXPECT_LT(distance(tracker.solve(rhs(d), delta), solution(F, delta)), 1e-10);
  EXPECT_GT(distance(solution(S.t().mm(S), delta), solution(F, delta)), 0.05);
}

TEST(KroneckerInverse, TakesARidgeOfRowsTimesColumnsAsItIsAndAnyOtherAsPositive) {
  KroneckerInverse tracker(0.9, dense_layer());
  tracker.add({scores(samples(0))}, ridge());
  const at::Tensor F = factors(samples(0)).product();
  const auto of_y = [](const at::Tensor& matrix) { return matrix.flatten().index_select(0, positions().argsort()); };
  const at::Tensor product = of_y(at::outer(normal({kOut}, 7).exp(), normal({kIn + 1}, 8).exp()));
  EXPECT_LT(distance(tracker.solve(rhs(), product), solution(F, product)), 1e-10);
  const at::Tensor any = normal({kSize}, 9).exp(), q = tracker.solve(rhs(), any);
  EXPECT_GT(q.dot(rhs()).item<double>(), 0);
  EXPECT_GT(distance(q, solution(F, any)), 1e-3);
  // Symmetric: uᵀ A⁻¹ v = vᵀ A⁻¹ u.
  const at::Tensor u = normal({kSize}, 10);
  EXPECT_NEAR(tracker.solve(u, any).dot(rhs()).item<double>(), q.dot(u).item<double>(),
              1e-10 * q.norm().item<double>() * u.norm().item<double>());
}

TEST(KroneckerInverse, AnswersFromTheRidgeAloneWhereTheScoresAreNothing) {
  KroneckerInverse tracker(0.9, dense_layer());
  ASSERT_TRUE(tracker.add({at::zeros({2, kSize}, at::kDouble)}, ridge()));
  EXPECT_LT(distance(tracker.solve(rhs(), ridge()), rhs() / ridge()), 1e-14);
}

TEST(KroneckerInverse, GoesOnFromItsStateWithTheSameBits) {
  KroneckerInverse whole(0.9, dense_layer());
  for (int64_t t = 0; t < 4; ++t) whole.add({scores(samples(t))}, ridge());
  KroneckerInverse resumed(0.9, dense_layer(), whole.state());
  EXPECT_TRUE(at::equal(whole.solve(rhs(), ridge()), resumed.solve(rhs(), ridge())));
  for (KroneckerInverse* one : {&whole, &resumed}) one->add({scores(samples(4)), scores(samples(5))}, ridge());
  EXPECT_TRUE(at::equal(whole.solve(rhs(), ridge()), resumed.solve(rhs(), ridge())));
  KroneckerInverse other(0.9, Layout().add("layer.weight", {kOut, kIn + 1}), whole.state());
  EXPECT_EQ(other.state().size(), 2u);  // the same factors, without a bias
  EXPECT_TRUE(KroneckerInverse(0.9, Layout().add("w", {kOut, kIn}), whole.state()).state().empty());
}

TEST(KroneckerInverse, TakesFloatAndKeepsRankOneApartFromRounding) {
  KroneckerInverse exact(0.9, dense_layer()), rounded(0.9, dense_layer());
  for (int64_t t = 0; t < 50; ++t) {
    exact.add({scores(samples(t))}, ridge());
    rounded.add({scores({samples(t).g.to(at::kFloat), samples(t).a.to(at::kFloat)})}, ridge().to(at::kFloat));
  }
  const at::Tensor q = rounded.solve(rhs().to(at::kFloat), ridge().to(at::kFloat));
  EXPECT_EQ(q.scalar_type(), at::kFloat);
  EXPECT_LT(distance(q.to(at::kDouble), exact.solve(rhs(), ridge())), 1e-5);
}

TEST(KroneckerInverse, SaysWhereItIsNotFiniteAndBeginsAnew) {
  KroneckerInverse tracker(0.9, dense_layer());
  EXPECT_FALSE(tracker.add({at::full({2, kSize}, std::nan(""), at::kDouble)}, ridge()));
  EXPECT_TRUE(tracker.state().empty());
  EXPECT_TRUE(tracker.add({scores(samples(0))}, ridge()));
  EXPECT_LT(distance(tracker.solve(rhs(), ridge()), solution(factors(samples(0)).product(), ridge())), 1e-10);
}

TEST(KroneckerInverse, RefusesWhatDoesNotFit) {
  EXPECT_THROW(KroneckerInverse(1.0, dense_layer()), Error);
  KroneckerInverse tracker(0.9, dense_layer());
  EXPECT_THROW(tracker.solve(rhs(), ridge()), Error);
  EXPECT_THROW(tracker.take(at::zeros({2, kSize + 1}, at::kDouble)), Error);
  tracker.take(scores(samples(0)));
  EXPECT_THROW(tracker.settle(at::ones({kSize + 1}, at::kDouble)), Error);
}

}  // namespace
}  // namespace bilevel::kronecker_inverse_test
