#include "bilevel/run/explain.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/inner_constraints.h"
#include "bilevel/problem/problem.h"

namespace bilevel {
namespace {

double number(const at::Tensor& tensor) { return tensor.item<double>(); }

constexpr int64_t kD = 6, kN = 20, kM = 9;

/// g = ½‖X y − (1 + slice) t‖²/n + ½ Σ e^{xⱼ} yⱼ²,   f_k = ½ (X'_k y − t'_k)² + 0.3 a_k x₁²,   y in the parts "first" [2],
/// "second" [4]. `skewed`: r = ∂y g + S y with S skew-symmetric, which is the gradient of nothing.
class Sampled final : public Problem {
 public:
  explicit Sampled(int64_t slices = 1, bool skewed = false) : slices_(slices), skewed_(skewed) {
    const Stream stream(3, "explain test");
    X_ = stream.at(0).normal({kN, kD}, at::kDouble);
    t_ = stream.at(1).normal({kN}, at::kDouble);
    outer_X_ = stream.at(2).normal({kM, kD}, at::kDouble);
    outer_t_ = stream.at(3).normal({kM}, at::kDouble);
    a_ = stream.at(4).normal({kM}, at::kDouble);
    const at::Tensor s = stream.at(5).normal({kD, kD}, at::kDouble);
    S_ = s - s.t();
    x_layout_.add("strength", {kD});
    y_layout_.add("first", {2}).add("second", {2, 2});
  }
  const Layout& outer_layout() const override { return x_layout_; }
  const Layout& inner_layout() const override { return y_layout_; }
  int64_t inner_problems() const override { return slices_; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    const at::Tensor e = X_.mv(y) - (1.0 + static_cast<double>(batch.slice)) * t_;
    return 0.5 * e.dot(e) / kN + 0.5 * (x.exp() * y * y).sum();
  }
  bool has_optimality_map() const override { return skewed_; }
  at::Tensor optimality_map(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return matrix(x).mv(y) - X_.t().mv(t_) / kN;
  }
  /// y₀ ≥ `lower`, where it is given.
  double lower = std::numeric_limits<double>::quiet_NaN();
  bool has_inner_constraints() const override { return !std::isnan(lower); }
  InnerConstraints inner_constraints(const at::Tensor&) const override {
    InnerConstraints constraints;
    constraints.lower = at::full({kD}, -1e9, at::kDouble).index_fill(0, at::zeros({1}, at::kLong), lower);
    return constraints;
  }
  bool has_outer_sample_losses() const override { return slices_ == 1; }
  at::Tensor outer_sample_losses(const at::Tensor& x, const at::Tensor& y, const Batch&) const override {
    return 0.5 * (outer_X_.mv(y) - outer_t_).square() + 0.3 * a_ * x[1] * x[1];
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return outer_sample_losses(x, y, batch).mean();
  }
  at::Tensor initial_outer() const override { return at::linspace(-2, 0.5, kD, at::kDouble); }
  at::Tensor initial_inner(const at::Tensor&, int64_t) const override { return at::zeros({kD}, at::kDouble); }

  at::Tensor matrix(const at::Tensor& x) const {
    const at::Tensor H = X_.t().mm(X_) / kN + at::diag(x.exp());
    return skewed_ ? H + S_ : H;
  }
  at::Tensor solution(const at::Tensor& x, int64_t slice = 0) const {
    const at::Tensor b = (1.0 + static_cast<double>(slice)) * X_.t().mv(t_) / kN;
    if (std::isnan(lower)) return at::linalg_solve(matrix(x), b);
    // With y₀ on its bound: the other equations.
    const at::Tensor A = matrix(x).slice(0, 1), rest = at::linalg_solve(A.slice(1, 1), b.slice(0, 1) - lower * A.select(1, 0));
    return at::cat({at::full({1}, lower, at::kDouble), rest});
  }
  at::Tensor outer_grad_y(const at::Tensor& y) const { return outer_X_.t().mv(outer_X_.mv(y) - outer_t_) / kM; }

 private:
  int64_t slices_;
  bool skewed_;
  at::Tensor X_, t_, outer_X_, outer_t_, a_, S_;
  Layout x_layout_, y_layout_;
};

at::Tensor moved(const at::Tensor& x, int64_t i, double h) {
  at::Tensor out = x.clone();
  out[i] += h;
  return out;
}

double sum_of(const std::vector<Explanation::Part>& parts) {
  double sum = 0;
  for (const auto& part : parts) sum += part.value;
  return sum;
}

const Lbfgs& solver() {
  static const Lbfgs lbfgs(LbfgsOptions{});
  return lbfgs;
}

class Splits : public testing::TestWithParam<int64_t> {};

TEST_P(Splits, AreTheClosedFormByPartsOfY) {
  const Sampled problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x);
  ExplainOptions options;
  options.dense_up_to = GetParam();
  for (int64_t i = 0; i < kD; ++i) {
    const Explanation e = explain(oracle, solver(), x, y, i, options);
    // ∂xᵢ r = e^{xᵢ} yᵢ eᵢ: one element of y alone carries it.
    const at::Tensor q = at::linalg_solve(problem.matrix(x), problem.outer_grad_y(y));
    const double implicit = -number(x[i].exp() * y[i] * q[i]);
    EXPECT_NEAR(e.implicit, implicit, 1e-10);
    ASSERT_EQ(e.parts.size(), 2u);
    EXPECT_EQ(e.parts[0].name, i < 2 ? "first" : "second") << "the greatest first";
    EXPECT_NEAR(e.parts[0].value, implicit, 1e-10);
    EXPECT_EQ(e.parts[1].value, 0.0);
    EXPECT_NEAR(sum_of(e.parts), e.implicit, 1e-10);
    EXPECT_EQ(e.value, e.direct + e.implicit);
    EXPECT_EQ(e.direct == 0.0, i != 1);
    EXPECT_EQ(e.name, problem.outer_layout().element_name(i));
    EXPECT_EQ(e.grade, Grade::kOk) << e.message;
    EXPECT_LT(e.mismatch, 1e-10);
  }
}

TEST_P(Splits, AreWhatLeavingASampleOutTakesAwayFromTheSlope) {
  const Sampled problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x);
  ExplainOptions options;
  options.dense_up_to = GetParam();
  options.most_samples = 4;
  const double h = 1e-5;
  for (const int64_t i : {1, 4}) {
    const Explanation e = explain(oracle, solver(), x, y, i, options);
    ASSERT_EQ(e.shares.numel(), kM);
    EXPECT_NEAR(number(e.shares.sum()), e.value, 1e-10);
    // F without sample k is (Σ_{j≠k} f_j)/n at the y* that the same training data give.
    const at::Tensor up = moved(x, i, h), down = moved(x, i, -h);
    const at::Tensor at_up = problem.outer_sample_losses(up, problem.solution(up), {});
    const at::Tensor at_down = problem.outer_sample_losses(down, problem.solution(down), {});
    const double whole = number((at_up.sum() - at_down.sum()) / (2 * h * kM));
    EXPECT_NEAR(e.value, whole, 1e-8);
    for (int64_t k = 0; k < kM; ++k) {
      const at::Tensor others = at::ones({kM}, at::kDouble).index_fill(0, at::tensor({k}), 0);
      const double without = number((at_up.dot(others) - at_down.dot(others)) / (2 * h * kM));
      EXPECT_NEAR(number(e.shares[k]), whole - without, 1e-8) << k;
    }
    ASSERT_EQ(e.samples.size(), 4u);
    for (size_t j = 0; j < e.samples.size(); ++j) {
      EXPECT_EQ(e.samples[j].value, number(e.shares[e.samples[j].index]));
      EXPECT_EQ(e.samples[j].loss, number(problem.outer_sample_losses(x, y, {})[e.samples[j].index]));
      EXPECT_GE(std::abs(e.samples[j > 0 ? j - 1 : 0].value), std::abs(e.samples[j].value));
    }
    EXPECT_EQ(std::abs(e.samples[0].value), number(e.shares.abs().max()));
  }
}

INSTANTIATE_TEST_SUITE_P(Explain, Splits, testing::Values(1000, 0),
                         [](const auto& solved) { return solved.param > 0 ? "Dense" : "Cg"; });

TEST(Explain, TakesSeveralInnerProblemsApart) {
  const Sampled problem(/*slices=*/3);
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer();
  const at::Tensor y = at::stack({problem.solution(x, 0), problem.solution(x, 1), problem.solution(x, 2)});
  const Explanation e = explain(oracle, solver(), x, y, 3);
  ASSERT_EQ(e.inner_problems.size(), 3u);
  for (int64_t s = 0; s < 3; ++s) {
    const at::Tensor q = at::linalg_solve(problem.matrix(x), problem.outer_grad_y(y[s]));
    EXPECT_NEAR(e.inner_problems[static_cast<size_t>(s)], -number(x[3].exp() * y[s][3] * q[3]) / 3, 1e-10);
  }
  EXPECT_FALSE(e.shares.defined());
  EXPECT_NEAR(sum_of(e.parts), e.value, 1e-10);
}

TEST(Explain, TransposesWhereTheOptimalityMapIsNoGradient) {
  const Sampled problem(1, /*skewed=*/true);
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x);
  for (const int64_t i : {0, 1, 5}) {
    const Explanation e = explain(oracle, solver(), x, y, i);
    const double h = 1e-5;
    const at::Tensor up = moved(x, i, h), down = moved(x, i, -h);
    const at::Tensor at_up = problem.outer_sample_losses(up, problem.solution(up), {});
    const at::Tensor at_down = problem.outer_sample_losses(down, problem.solution(down), {});
    for (int64_t k = 0; k < kM; ++k) EXPECT_NEAR(number(e.shares[k]), number(at_up[k] - at_down[k]) / (2 * h * kM), 1e-8);
    EXPECT_NEAR(e.value, number(at_up.mean() - at_down.mean()) / (2 * h), 1e-8);
  }
}

TEST(Explain, HoldsWhatLiesOnABound) {
  Sampled problem;
  problem.lower = number(problem.solution(problem.initial_outer())[0]) + 0.3;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x);
  for (const int64_t i : {0, 3}) {
    const Explanation e = explain(oracle, solver(), x, y, i);
    EXPECT_EQ(e.grade, Grade::kOk) << e.message;
    const double h = 1e-5;
    const at::Tensor up = moved(x, i, h), down = moved(x, i, -h);
    const at::Tensor at_up = problem.outer_sample_losses(up, problem.solution(up), {});
    const at::Tensor at_down = problem.outer_sample_losses(down, problem.solution(down), {});
    for (int64_t k = 0; k < kM; ++k) EXPECT_NEAR(number(e.shares[k]), number(at_up[k] - at_down[k]) / (2 * h * kM), 1e-8);
    EXPECT_NEAR(sum_of(e.parts), e.implicit, 1e-12);
    EXPECT_EQ(e.value == 0.0, i == 0) << "its ridge pulls at a weight that cannot move";
  }
}

TEST(Explain, CountsACoupledWeightDecay) {
  const Sampled problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer();
  SgdRuleOptions decayed;
  decayed.weight_decay = 0.7;
  const RuleSolver rule(std::make_unique<SgdRule>(decayed), RuleSolverOptions{});
  const at::Tensor A = problem.matrix(x) + 0.7 * at::eye(kD, at::kDouble);
  const at::Tensor y = at::linalg_solve(A, problem.matrix(x).mv(problem.solution(x)));
  const at::Tensor q = at::linalg_solve(A, problem.outer_grad_y(y));
  const Explanation e = explain(oracle, rule, x, y, 2);
  EXPECT_NEAR(e.value, -number(x[2].exp() * y[2] * q[2]), 1e-10);
  EXPECT_LT(e.stationarity, 1e-12);
}

TEST(Explain, WarnsWhereTheSolvesAreNotDone) {
  const Sampled problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x);
  ExplainOptions options;
  options.dense_up_to = 0;
  options.iterations = 2;
  const Explanation e = explain(oracle, solver(), x, y, 0, options);
  EXPECT_EQ(e.grade, Grade::kWarn);
  EXPECT_GT(e.residual, 1e-6);
  EXPECT_GT(e.mismatch, 1e-12);
}

TEST(Explain, FindsElementsByTheirNames) {
  Layout layout;
  layout.add("lr", {}).add("l2", {4}).add("weight", {2, 3});
  EXPECT_EQ(element_index(layout, "lr"), 0);
  EXPECT_EQ(element_index(layout, "l2[3]"), 4);
  EXPECT_EQ(element_index(layout, "weight[1,2]"), 10);
  for (int64_t i = 0; i < layout.size(); ++i) EXPECT_EQ(element_index(layout, layout.element_name(i)), i);
  for (const char* wrong : {"l2", "l2[4]", "l2[-1]", "l2[]", "l2[1", "l2[x]", "l2[1,1]", "weight[1]", "lr[0]", "L2[0]", ""}) {
    EXPECT_THROW(element_index(layout, wrong), Error) << wrong;
  }
}

TEST(Explain, RefusesWhatItCannotTakeApart) {
  const Sampled problem;
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer(), y = problem.solution(x);
  EXPECT_THROW(explain(oracle, solver(), x, y, kD), Error);
  EXPECT_THROW(explain(oracle, solver(), x, y.narrow(0, 0, 2), 0), Error);
  ExplainOptions options;
  options.tolerance = 0;
  EXPECT_THROW(explain(oracle, solver(), x, y, 0, options), Error);
}

}  // namespace
}  // namespace bilevel
