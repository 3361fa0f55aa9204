// Each estimator against the quantity that it converges to, as its K grows, on quadratics of condition 10, 1e3 and 1e6: the error
// is that of the theory, in closed form, and goes to zero.
//
// With g = ½ yᵀA y − yᵀ(B x + c), f = ½‖y − d‖² + ½ρ‖x‖², step η, M = I − η A and e₀ = y₀ − y*:
//   y_T = y* + Mᵀ e₀,   dy_T/dx = (I − Mᵀ) A⁻¹B   (powers T),   ∇F = ρ x + Bᵀ A⁻¹ (y* − d).
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "bilevel/hypergrad/forward.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/plain_test.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/hypergrad/zeroth_order.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/neumann.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel {
namespace {

using namespace testing;

constexpr double kEta = 1.0;  // the largest eigenvalue is 1

class Convergence : public ::testing::TestWithParam<double> {
 protected:
  double mu() const { return 1.0 / GetParam(); }
  at::Tensor power(int64_t n) const { return at::matmul(V_ * (1 - kEta * lambda_).pow(static_cast<double>(n)), V_.t()); }
  at::Tensor A_inverse() const { return at::matmul(V_ / lambda_, V_.t()); }
  at::Tensor b(const at::Tensor& y) const { return outer_grad_y(problem_, x_, y); }
  at::Tensor direct() const { return outer_grad_x(problem_, x_, y_star_); }
  at::Tensor y_after(int64_t T) const { return y_star_ + power(T).mv(y0_ - y_star_); }
  at::Tensor gradient_of_F_T(int64_t T) const {
    const at::Tensor through = at::matmul(at::eye(y0_.size(0), y0_.options()) - power(T), A_inverse());
    return direct() + problem_.B().t().mv(through.t().mv(b(y_after(T))));
  }

  const QuadraticProblem problem_{{.condition = GetParam()}};
  const at::Tensor x_ = problem_.initial_outer(), y0_ = problem_.initial_inner(x_, 0), y_star_ = problem_.solution(x_);
  const at::Tensor gradient_ = problem_.hypergradient(x_);
  const std::tuple<at::Tensor, at::Tensor> eigen_ = at::linalg_eigh(problem_.A());
  const at::Tensor lambda_ = std::get<0>(eigen_), V_ = std::get<1>(eigen_);
};

// The last K steps at the solution leave out Bᵀ M^K A⁻¹ b, which fades like (1 − ημ)^K.
TEST_P(Convergence, TruncatedUnrollingLeavesOutWhatTheorySays) {
  double last = std::numeric_limits<double>::infinity();
  for (const int64_t K : {1, 4, 16, 64, 256, 1024}) {
    const at::Tensor value = estimate(Unrolled({.steps = K}), problem_, rule_solver({.lr = kEta}, K), x_, {.y = y_star_}).value;
    const at::Tensor left_out = problem_.B().t().mv(power(K).mv(A_inverse().mv(b(y_star_))));
    EXPECT_LT((value + left_out - gradient_).norm().item<double>(), 1e-9 * gradient_.norm().item<double>()) << K;
    const double error = (value - gradient_).norm().item<double>();
    EXPECT_LT(error, last) << K;
    last = std::max(error, 1e-12);
  }
  // The observed rate: that of the flattest direction, once the others have faded.
  const int64_t K = static_cast<int64_t>(3 * std::min(GetParam(), 1e3));
  const auto error = [&](int64_t k) {
    return (estimate(Unrolled({.steps = k, .memory = Memory::kStates}), problem_, rule_solver({.lr = kEta}, k), x_,
                     {.y = y_star_})
                .value -
            gradient_)
        .norm()
        .item<double>();
  };
  if (GetParam() <= 1e3) {
    const int64_t more = K / 3;
    const double rate = std::pow(error(K + more) / error(K), 1.0 / static_cast<double>(more));
    EXPECT_NEAR((1 - rate) / (kEta * mu()), 1.0, 0.05);
  }
}

TEST_P(Convergence, UnrollingAndForwardModeAreTheDerivativeOfF_TForEveryT) {
  for (const int64_t T : {1, 10, 100, 1000}) {
    const at::Tensor exact = gradient_of_F_T(T);
    const RuleSolver solver = rule_solver({.lr = kEta}, T);
    EXPECT_LT(relative_error(estimate(Unrolled(), problem_, solver, x_).value, exact), 1e-9) << T;
    EXPECT_LT(relative_error(estimate(Forward(), problem_, solver, x_).value, exact), 1e-9) << T;
  }
}

// Heavy ball at its best step and momentum takes √κ times as few steps, so that the error goes to zero at condition 1e6 too.
TEST_P(Convergence, UnrollingGoesToTheHypergradientAsTGrows) {
  const double root = std::sqrt(GetParam()), q = (root - 1) / (root + 1);
  const double lr = 4 / std::pow(1 + 1 / root, 2);
  const PlainRule rule{.lr = lr, .momentum = q * q};
  double last = 1e300;
  for (const double times : {2.0, 5.0, 10.0}) {
    const auto T = static_cast<int64_t>(times * root) + 20;
    const RuleSolver solver = rule_solver(rule, T);
    const at::Tensor value = estimate(Unrolled({.memory = Memory::kCheckpoints}), problem_, solver, x_).value;
    const double error = relative_error(value, gradient_);
    EXPECT_LT(error, 0.3 * last) << T;
    last = std::max(error, 1e-14);
    if (T >= 1000) continue;
    EXPECT_LT(relative_error(estimate(Forward(), problem_, solver, x_).value, value), 1e-9) << T;
  }
  EXPECT_LT(last, 1e-4);
}

// η stands for A⁻¹; what T changes is b alone, by Mᵀ e₀. All five are the same on a quadratic, whose derivatives are constant.
TEST_P(Convergence, OneStepEstimatorsGoToTheirFormulaAsTGrows) {
  const at::Tensor limit = direct() + kEta * problem_.B().t().mv(b(y_star_));
  EXPECT_GT(relative_error(limit, gradient_), 0.1);  // the bias that no T removes
  for (const char* name : {"one-step", "t1-t2", "identity", "darts", "sama"}) {
    Section none = Config::parse("", "test.toml").root();
    const auto estimator = make_estimator(name, none);
    double last = 1e300;
    for (const int64_t T : {1, 30, 1000}) {
      const at::Tensor value = estimate(*estimator, problem_, rule_solver({.lr = kEta}, T), x_).value;
      const at::Tensor theory = kEta * problem_.B().t().mv(power(T).mv(y0_ - y_star_));
      EXPECT_LT((value - limit - theory).norm().item<double>(), 1e-8 * limit.norm().item<double>()) << name << ", T = " << T;
      const double error = (value - limit).norm().item<double>();
      EXPECT_LT(error, GetParam() < 1e6 ? last : 1.001 * last) << name << ", T = " << T;  // 1e6: e₀ has nearly all to go yet
      last = std::max(error, 1e-10);
    }
  }
}

TEST_P(Convergence, NeumannFadesAsTruncationDoesAndCgGoesToTheHypergradient) {
  const RuleSolver still = rule_solver({.lr = kEta}, 1);
  for (const int64_t K : {1, 16, 256}) {
    const Implicit neumann(std::make_unique<Neumann>(NeumannOptions{.iterations = K}));
    const at::Tensor left_out = problem_.B().t().mv(power(K + 1).mv(A_inverse().mv(b(y_star_))));
    const at::Tensor value = estimate(neumann, problem_, still, x_, {.y = y_star_}).value;
    EXPECT_LT((value + left_out - gradient_).norm().item<double>(), 1e-9 * gradient_.norm().item<double>()) << K;
  }
  CgOptions options;
  options.iterations = 60;
  options.tolerance = 1e-14;
  const Implicit cg(std::make_unique<Cg>(options));
  EXPECT_LT(relative_error(estimate(cg, problem_, still, x_, {.y = y_star_}).value, gradient_), 1e-15 * GetParam() + 1e-9);
}

TEST_P(Convergence, ZerothOrderGoesToTheDerivativeOfF_TAsSamplesGrow) {
  const RuleSolver solver = rule_solver({.lr = kEta}, 5);
  const at::Tensor exact = gradient_of_F_T(5);
  double last = std::numeric_limits<double>::infinity();
  for (const int64_t N : {100, 400, 1600}) {
    const Hypergradient h = estimate(ZerothOrder({.samples = N}), problem_, solver, x_);
    const double standard = *h.certificate.standard_error;
    EXPECT_LT((h.value - exact).norm().item<double>(), 3 * standard) << N;
    EXPECT_NEAR(standard / last, N == 100 ? 0.0 : 0.5, 0.1) << N;
    last = standard;
  }
}

INSTANTIATE_TEST_SUITE_P(Conditions, Convergence, ::testing::Values(10.0, 1e3, 1e6),
                         [](const auto& test) { return fmt::format("{:.0f}", test.param); });

// ---- The bound of truncation: what the steps left out would add to the derivative of F_T ----

TEST_P(Convergence, TheTailOfTruncationIsBoundedAndTheBoundIsNotLoose) {
  const RuleSolver solver = rule_solver({.lr = kEta}, 200);
  const at::Tensor all = gradient_of_F_T(200);
  for (const int64_t K : {1, 5, 20, 60}) {
    const Hypergradient h = estimate(Unrolled({.steps = K}), problem_, solver, x_, {.bound = true});
    ASSERT_TRUE(h.certificate.error_bound.has_value()) << h.certificate.bound_reason;
    const double error = (h.value - all).norm().item<double>();
    EXPECT_GE(*h.certificate.error_bound, error) << K;
    EXPECT_LT(*h.certificate.error_bound, 1.01 * error + 1e-11 * all.norm().item<double>()) << K;
  }
  // The derivative of F_T itself: rounding is left.
  const Hypergradient whole = estimate(Unrolled(), problem_, solver, x_, {.bound = true});
  EXPECT_LT(*whole.certificate.error_bound, 1e-11 * all.norm().item<double>());
  EXPECT_EQ(estimate(Unrolled({.steps = 5}), problem_, solver, x_).certificate.bound_reason, "No bound: none was asked for.");
}

// With momentum, minibatches, and a loss that is not quadratic, against one graph through all steps.
TEST(Truncation, IsBoundedForEveryRuleAndBatch) {
  const MlpProblem problem;
  const at::Tensor x = problem.initial_outer();
  for (const PlainRule& rule : {PlainRule{.lr = 0.05, .momentum = 0.9}, PlainRule{.kind = PlainRule::Kind::kAdam, .lr = 0.03}}) {
    const at::Tensor all = unrolled_gradient(problem, x, rule, 12);
    const Hypergradient h = estimate(Unrolled({.steps = 3}), problem, rule_solver(rule, 12), x, {.bound = true});
    const double error = (h.value - all).norm().item<double>();
    EXPECT_GT(error, 0.01 * all.norm().item<double>());
    EXPECT_GE(h.certificate.error_bound.value_or(0), error);
    EXPECT_LT(*h.certificate.error_bound, 1.01 * error);
  }
  const LogisticWeightsProblem logistic;
  const RuleSolver stochastic =
      rule_solver({.lr = 0.5}, 15, BatchPlan::shuffled(logistic.inner_samples(), 7, Stream(3, "inner batches")));
  const at::Tensor x_l = logistic.initial_outer(), all = estimate(Unrolled(), logistic, stochastic, x_l).value;
  const Hypergradient h = estimate(Unrolled({.steps = 4}), logistic, stochastic, x_l, {.bound = true});
  EXPECT_NEAR(h.certificate.error_bound.value_or(0) / (h.value - all).norm().item<double>(), 1.0, 0.01);
}

}  // namespace
}  // namespace bilevel
