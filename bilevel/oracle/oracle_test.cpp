#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/oracle/finite_difference.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel {
namespace {

// g = ½ ‖tanh(A y) − t‖² + ½ Σ_j e^{x_j} y_j²,  f = ½ ‖y − d‖² + ⟨c, x⟩ y₀: smooth, and not quadratic.
class TanhProblem : public Problem {
 public:
  TanhProblem() {
    outer_.add("x", {4});
    inner_.add("y", {4});
  }
  const Layout& outer_layout() const override { return outer_; }
  const Layout& inner_layout() const override { return inner_; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return inner_loss_of_outputs(x, y, inner_outputs(y, batch), batch);
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return (y - d_).pow(2).sum() / 2 + c_.dot(x) * y[0];
  }
  bool has_outputs() const override { return true; }
  at::Tensor inner_outputs(const at::Tensor& y, const Batch& batch) const override {
    return at::tanh((batch.full() ? a_ : a_.index_select(0, batch.samples)).mv(y));
  }
  at::Tensor inner_loss_of_outputs(const at::Tensor& x, const at::Tensor& y, const at::Tensor& z,
                                   const Batch& batch) const override {
    const at::Tensor t = batch.full() ? t_ : t_.index_select(0, batch.samples);
    return (z - t).pow(2).sum() / 2 + (x.exp() * y.pow(2)).sum() / 2;
  }
  at::Tensor a_ = Stream(1, "a").at(0).normal({6, 4});
  at::Tensor t_ = Stream(1, "t").at(0).normal({6});
  at::Tensor d_ = Stream(1, "d").at(0).normal({4});
  at::Tensor c_ = Stream(1, "c").at(0).normal({4});

 private:
  Layout outer_, inner_;
};

struct OracleTest : testing::Test {
  TanhProblem problem;
  AutodiffOracle oracle{problem};
  at::Tensor x = Stream(2, "x").at(0).normal({4}) / 3;
  at::Tensor y = Stream(2, "y").at(0).normal({4}) / 3;
  at::Tensor v = Stream(2, "v").at(0).normal({4});
  at::Tensor w = Stream(2, "w").at(0).normal({4});
};

double relative_error(const at::Tensor& a, const at::Tensor& b) { return ((a - b).norm() / b.norm()).item<double>(); }

// Written out by hand: z = tanh(A y), z' = 1 − z², z'' = −2 z z'.
TEST_F(OracleTest, ProductsEqualTheClosedForm) {
  const auto lin = oracle.linearize_inner(x, y, {});
  const at::Tensor z = at::tanh(problem.a_.mv(y)), z1 = 1 - z * z, z2 = -2 * z * z1, e = z - problem.t_;
  const at::Tensor gauss_newton = problem.a_.t().mm(at::diag(z1 * z1)).mm(problem.a_) + at::diag(x.exp());
  const at::Tensor hessian = gauss_newton + problem.a_.t().mm(at::diag(e * z2)).mm(problem.a_);
  EXPECT_LT(relative_error(lin->residual(), problem.a_.t().mv(e * z1) + x.exp() * y), 1e-13);
  EXPECT_LT(relative_error(lin->grad_x(), x.exp() * y * y / 2), 1e-13);
  EXPECT_LT(relative_error(lin->jvp_y(v), hessian.mv(v)), 1e-13);
  EXPECT_LT(relative_error(lin->vjp(w).y, hessian.mv(w)), 1e-13);
  EXPECT_LT(relative_error(lin->vjp(w).x, x.exp() * y * w), 1e-13);
  EXPECT_LT(relative_error(lin->jvp_x(v), x.exp() * y * v), 1e-13);
  EXPECT_LT(relative_error(lin->gauss_newton(v), gauss_newton.mv(v)), 1e-13);
  EXPECT_GT(relative_error(lin->gauss_newton(v), hessian.mv(v)), 0.01);  // the two are different matrices here
}

TEST_F(OracleTest, ProductsMayBeAskedForAgainInAnyOrder) {
  const auto lin = oracle.linearize_inner(x, y, {});
  const at::Tensor first = lin->jvp_y(v);
  lin->jvp_x(v);
  lin->grad_x();
  lin->gauss_newton(v);
  lin->vjp(w);
  EXPECT_TRUE(at::equal(lin->jvp_y(v), first));
}

TEST_F(OracleTest, ABlockIsItsRows) {
  const auto lin = oracle.linearize_inner(x, y, {});
  const at::Tensor block = at::stack({v, w});
  EXPECT_TRUE(at::equal(lin->jvp_y(block)[1], lin->jvp_y(w)));
  EXPECT_TRUE(at::equal(lin->vjp(block).x[0], lin->vjp(v).x));
  EXPECT_TRUE(at::equal(lin->jvp_x(block)[1], lin->jvp_x(w)));
  EXPECT_TRUE(at::equal(lin->gauss_newton(block)[0], lin->gauss_newton(v)));
}

TEST_F(OracleTest, DifferencesAgreeWithAutodiffInDoubleAndNoBetterThanTheyShouldInFloat) {
  const FiniteDifferenceOracle differences(oracle);
  const auto exact = oracle.linearize_inner(x, y, {});
  const auto close = differences.linearize_inner(x, y, {});
  EXPECT_LT(relative_error(close->jvp_y(v), exact->jvp_y(v)), 1e-8);
  EXPECT_LT(relative_error(close->vjp(w).x, exact->vjp(w).x), 1e-8);
  EXPECT_LT(relative_error(close->jvp_x(v), exact->jvp_x(v)), 1e-8);
  EXPECT_EQ(close->jvp_y(at::zeros_like(v)).norm().item<double>(), 0.0);
  EXPECT_THROW(close->gauss_newton(v), Error);
}

TEST_F(OracleTest, OuterGradientsEqualTheClosedForm) {
  const Gradients g = oracle.outer(x, y, {});
  at::Tensor expected = y - problem.d_;
  expected[0] += problem.c_.dot(x);
  EXPECT_LT(relative_error(g.y, expected), 1e-13);
  EXPECT_LT(relative_error(g.x, problem.c_ * y[0]), 1e-13);
  EXPECT_EQ(g.value.item<double>(), oracle.outer_value(x, y, {}).item<double>());
}

TEST_F(OracleTest, InnerGradientsAreThoseOfTheLinearizationAndOfTheBatch) {
  Batch batch;
  batch.samples = at::tensor({0, 5, 5}, at::kLong);
  const auto lin = oracle.linearize_inner(x, y, batch);
  const Gradients g = oracle.inner(x, y, batch);
  EXPECT_TRUE(at::equal(g.y, lin->residual()));
  EXPECT_FALSE(at::equal(g.y, oracle.inner(x, y, {}).y));
  EXPECT_TRUE(at::equal(oracle.inner_grad_x(x, y, batch), lin->grad_x()));
  EXPECT_EQ(oracle.inner_value(x, y, batch).item<double>(), g.value.item<double>());
}

TEST_F(OracleTest, ResultsCarryNoGraph) {
  const auto lin = oracle.linearize_inner(x, y, {});
  for (const at::Tensor& t : {lin->value(), lin->residual(), lin->grad_x(), lin->jvp_y(v), lin->jvp_x(v), lin->vjp(v).x,
                              oracle.inner(x, y, {}).y, oracle.outer(x, y, {}).x}) {
    EXPECT_FALSE(t.requires_grad());
  }
}

TEST_F(OracleTest, CountsEveryCall) {
  const CountedOracle counted(oracle);
  const auto lin = counted.linearize_inner(x, y, {});
  lin->jvp_y(v);
  lin->vjp(at::stack({v, w}));
  lin->jvp_x(v);
  lin->gauss_newton(v);
  counted.inner(x, y, {});
  counted.outer(x, y, {});
  counted.outer_value(x, y, {});
  EXPECT_EQ(counted.cost().gradients, 3);
  EXPECT_EQ(counted.cost().hvps, 4);
  EXPECT_EQ(counted.cost().cross_products, 3);
  EXPECT_EQ(counted.cost().forwards, 1);
}

TEST(CountedOracle, CountsTheSamplesThatCallsLookAt) {
  const RidgeProblem problem;  // 30 inner samples and 20 outer ones
  const AutodiffOracle oracle(problem);
  const CountedOracle counted(oracle);
  const at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0), v = at::ones_like(y);
  Batch batch;
  batch.samples = at::arange(7, at::kLong);
  const auto since = [&](auto call) {
    const int64_t before = counted.cost().samples;
    call();
    return counted.cost().samples - before;
  };
  EXPECT_EQ(since([&] { counted.inner(x, y, {}); }), 30);
  EXPECT_EQ(since([&] { counted.inner(x, y, batch); }), 7);
  EXPECT_EQ(since([&] { counted.outer(x, y, {}); }), 20);
  EXPECT_EQ(since([&] { counted.outer_value(x, y, batch); }), 7);
  EXPECT_EQ(since([&] { counted.linearize_inner(x, y, batch)->vjp(at::stack({v, v})); }), 7 + 2 * (7 + 7));
  const at::Tensor r = at::empty_like(y), Hv = at::empty_like(y), cross = at::empty_like(x);
  const auto pass = counted.joint_pass();
  EXPECT_EQ(since([&] { pass->inner(x, y, v, batch, r, Hv, cross); }), 3 * 7);
  EXPECT_EQ(since([&] { pass->outer(x, y, {}, r, cross); }), 20);
}

// A loss linear in y has no graph behind its gradient, and one that ignores x no derivative by it.
class LinearProblem : public TanhProblem {
 public:
  at::Tensor inner_loss(const at::Tensor&, const at::Tensor& y, const Batch&) const override { return y.dot(c_); }
};

TEST(AutodiffOracle, GivesZerosWhereALossDoesNotDepend) {
  const LinearProblem problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = at::zeros({4}, at::kDouble), v = at::ones({4}, at::kDouble);
  const auto lin = oracle.linearize_inner(x, x, {});
  EXPECT_TRUE(at::equal(lin->residual(), problem.c_));
  for (const at::Tensor& t : {lin->jvp_y(v), lin->vjp(v).y, lin->vjp(v).x, lin->jvp_x(v), lin->grad_x()}) {
    EXPECT_EQ(t.norm().item<double>(), 0.0);
  }
}

// r = A y + ¼ B (y ⊙ y) − C sin x: not the gradient of anything, for A and ∂y r are not symmetric.
class MapProblem : public TanhProblem {
 public:
  bool has_optimality_map() const override { return true; }
  at::Tensor inner_loss(const at::Tensor&, const at::Tensor&, const Batch&) const override { throw Error("no loss"); }
  at::Tensor optimality_map(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return m_.mv(y) + b_.mv(y * y) / 4 - k_.mv(x.sin());
  }
  at::Tensor m_ = Stream(3, "A").at(0).normal({4, 4});
  at::Tensor b_ = Stream(3, "B").at(0).normal({4, 4});
  at::Tensor k_ = Stream(3, "C").at(0).normal({4, 4});
};

struct OptimalityMapTest : testing::Test {
  MapProblem problem;
  AutodiffOracle oracle{problem};
  at::Tensor x = Stream(2, "x").at(0).normal({4}), y = Stream(2, "y").at(0).normal({4});
  at::Tensor v = Stream(2, "v").at(0).normal({4}), w = Stream(2, "w").at(0).normal({4});
  at::Tensor r = problem.m_.mv(y) + problem.b_.mv(y * y) / 4 - problem.k_.mv(x.sin());
  at::Tensor J = problem.m_ + problem.b_ * (y / 2).unsqueeze(0), K = -problem.k_ * x.cos().unsqueeze(0);
};

TEST_F(OptimalityMapTest, ProductsEqualTheClosedFormOnBothSides) {
  const auto lin = oracle.linearize_inner(x, y, {});
  EXPECT_FALSE(lin->symmetric());
  EXPECT_LT(relative_error(lin->residual(), r), 1e-14);
  EXPECT_LT(relative_error(lin->value(), r.dot(r) / 2), 1e-14);
  EXPECT_LT(relative_error(lin->jvp_y(v), J.mv(v)), 1e-13);
  EXPECT_LT(relative_error(lin->vjp(w).y, J.t().mv(w)), 1e-13);
  EXPECT_LT(relative_error(lin->vjp(w).x, K.t().mv(w)), 1e-13);
  EXPECT_LT(relative_error(lin->jvp_x(v), K.mv(v)), 1e-13);
  EXPECT_LT(relative_error(lin->grad_x(), K.t().mv(r)), 1e-13);
  EXPECT_GT(relative_error(J.mv(v), J.t().mv(v)), 0.1);  // the two sides differ here
  EXPECT_TRUE(at::equal(lin->jvp_y(at::stack({v, w}))[1], lin->jvp_y(w)));
  EXPECT_TRUE(at::equal(lin->vjp(at::stack({v, w})).y[1], lin->vjp(w).y));
  EXPECT_THROW(lin->gauss_newton(v), Error);
}

TEST_F(OptimalityMapTest, InnerGradientsAreTheMapAndItsHalfSquare) {
  const Gradients g = oracle.inner(x, y, {});
  EXPECT_TRUE(at::equal(g.y, r));
  EXPECT_LT(relative_error(g.value, r.dot(r) / 2), 1e-14);
  EXPECT_LT(relative_error(oracle.inner_grad_x(x, y, {}), K.t().mv(r)), 1e-13);
  EXPECT_EQ(oracle.inner_value(x, y, {}).item<double>(), g.value.item<double>());
}

TEST_F(OptimalityMapTest, DifferencesGiveTheProductsThatTheyCanAndRefuseTheTransposedOnes) {
  const FiniteDifferenceOracle differences(oracle);
  const auto lin = differences.linearize_inner(x, y, {});
  EXPECT_LT(relative_error(lin->jvp_y(v), J.mv(v)), 1e-8);
  EXPECT_LT(relative_error(lin->jvp_x(v), K.mv(v)), 1e-8);
  EXPECT_FALSE(lin->symmetric());
  EXPECT_THROW(lin->vjp(v), Error);
}

// Linear maps have no graph behind their derivative, and a constant one none at all.
class LinearMapProblem : public MapProblem {
 public:
  at::Tensor optimality_map(const at::Tensor&, const at::Tensor& y, const Batch&) const override { return m_.mv(y); }
};
class ConstantMapProblem : public MapProblem {
 public:
  at::Tensor optimality_map(const at::Tensor&, const at::Tensor&, const Batch&) const override { return c_; }
};

TEST_F(OptimalityMapTest, GivesZerosWhereAMapDoesNotDepend) {
  const LinearMapProblem linear;
  const ConstantMapProblem constant;
  const auto lin = AutodiffOracle(linear).linearize_inner(x, y, {});
  EXPECT_LT(relative_error(lin->jvp_y(v), linear.m_.mv(v)), 1e-14);
  EXPECT_LT(relative_error(lin->vjp(v).y, linear.m_.t().mv(v)), 1e-14);
  const auto none = AutodiffOracle(constant).linearize_inner(x, y, {});
  for (const at::Tensor& t : {lin->vjp(v).x, lin->jvp_x(v), lin->grad_x(), none->jvp_y(v), none->vjp(v).y, none->jvp_x(v)}) {
    EXPECT_EQ(t.norm().item<double>(), 0.0);
  }
}

class ShortMapProblem : public MapProblem {
 public:
  at::Tensor optimality_map(const at::Tensor&, const at::Tensor& y, const Batch&) const override { return y.narrow(0, 0, 2); }
};

TEST_F(OptimalityMapTest, RefusesAMapOfAnotherSize) {
  const ShortMapProblem wrong;
  EXPECT_THROW(AutodiffOracle(wrong).inner(x, y, {}), Error);
}

class DropoutProblem : public TanhProblem {
 public:
  bool draws_random_numbers() const override { return true; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return (at::dropout(y, 0.5, true) * x.exp()).pow(2).sum();
  }
};

TEST(AutodiffOracle, SeedsALossThatDrawsByItsBatch) {
  const DropoutProblem problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor y = at::ones({4}, at::kDouble), x = at::zeros({4}, at::kDouble);
  std::set<std::string> seen;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Batch batch;
    batch.seed = seed;
    const at::Tensor g = oracle.inner(x, y, batch).y;
    EXPECT_TRUE(at::equal(g, oracle.linearize_inner(x, y, batch)->residual()));
    seen.insert(c10::str(g));
  }
  EXPECT_GT(seen.size(), 5u);
}

TEST(AutodiffOracle, RefusesWhatDoesNotFit) {
  const TanhProblem problem;
  const AutodiffOracle oracle(problem);
  EXPECT_THROW(oracle.linearize_inner(at::zeros({4}, at::kDouble), at::zeros({5}, at::kDouble), {}), Error);
  EXPECT_THROW(oracle.linearize_inner(at::zeros({4}, at::kLong), at::zeros({4}, at::kDouble), {}), Error);
}

}  // namespace
}  // namespace bilevel
