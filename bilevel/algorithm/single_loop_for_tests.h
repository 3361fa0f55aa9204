#pragma once
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <variant>
#include <vector>

#include "bilevel/algorithm/single_loop.h"
#include "bilevel/core/stream.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/problem.h"

namespace bilevel::test {

/// g = mean_i [½ yᵀA_i y − yᵀ(B_i x + c_i)],  f = mean_i ½‖y − d_i‖² + ½ρ‖x‖², with 22 and 15 samples that differ much. A
/// minimiser is known: with bars for means y* = Ā⁻¹(B̄ x + c̄), ∇F = ρ x + B̄ᵀĀ⁻¹(y* − d̄).
class FiniteSum final : public Problem {
 public:
  static constexpr int64_t kInner = 22, kOuter = 15;

  FiniteSum() {
    Draw draw = Stream(5, "finite sum").at(0);
    outer_.add("x", {2});
    inner_.add("y", {3});
    const at::Tensor M = draw.normal({kInner, 3, 3});
    A_ = M.matmul(M.transpose(1, 2)) / 3 + 0.5 * at::eye(3, at::kDouble);
    B_ = draw.normal({kInner, 3, 2});
    c_ = draw.normal({kInner, 3});
    d_ = draw.normal({kOuter, 3}) + 1;
  }

  const Layout& outer_layout() const override { return outer_; }
  const Layout& inner_layout() const override { return inner_; }
  int64_t inner_samples() const override { return kInner; }
  int64_t outer_samples() const override { return kOuter; }
  at::Tensor initial_outer() const override { return at::tensor({0.7, -1.1}, at::kDouble); }
  at::Tensor initial_inner(const at::Tensor&, int64_t) const override { return at::tensor({0.3, 0.1, -0.4}, at::kDouble); }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    const at::Tensor A = mean(A_, batch), B = mean(B_, batch), c = mean(c_, batch);
    return 0.5 * y.dot(A.mv(y)) - y.dot(B.mv(x) + c);
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    const at::Tensor d = batch.full() ? d_ : d_.index_select(0, batch.samples);
    return 0.5 * (y.unsqueeze(0) - d).square().sum(1).mean() + 0.5 * kRho * x.dot(x);
  }

  at::Tensor solution(const at::Tensor& x) const { return at::linalg_solve(A_.mean(0), B_.mean(0).mv(x) + c_.mean(0)); }
  at::Tensor adjoint(const at::Tensor& y) const { return at::linalg_solve(A_.mean(0), y - d_.mean(0)); }
  at::Tensor hypergradient(const at::Tensor& x) const { return kRho * x + B_.mean(0).t().mv(adjoint(solution(x))); }

 private:
  static constexpr double kRho = 0.3;
  static at::Tensor mean(const at::Tensor& t, const Batch& batch) {
    return (batch.full() ? t : t.index_select(0, batch.samples)).mean(0);
  }
  Layout outer_, inner_;
  at::Tensor A_, B_, c_, d_;
};

/// What one pair of batches gives at the state's point, by the oracle's single calls: D_y, H q, (∂x r)ᵀ q, ∂y f, ∂x f.
struct Quantities {
  at::Tensor r, Hq, cross, f_y, f_x;
};
inline Quantities quantities(const Oracle& oracle, const State& state, const at::Tensor& inner, const at::Tensor& outer) {
  Batch of_inner, of_outer;
  of_inner.samples = inner;
  of_outer.samples = outer;
  const at::Tensor x = state.tensor("x"), y = state.tensor("y");
  const auto lin = oracle.linearize_inner(x, y, of_inner);
  const Vjp products = lin->vjp(state.tensor("q"));
  const Gradients f = oracle.outer(x, y, of_outer);
  return {lin->residual(), products.y, products.x, f.y, f.x};
}

inline double distance(const at::Tensor& a, const at::Tensor& b) { return (a - b).norm().item<double>(); }

/// Where a step of 0.1 of y, q and x leads from `state`, along D = (∂y g, H q, (∂x r)ᵀ q) and E = (∂y f, ∂x f), to rounding.
inline void expect_step(const State& from, const at::Tensor& D, const at::Tensor& E, const State& to, double tolerance,
                        int64_t t) {
  EXPECT_LT(distance(to.tensor("y"), from.tensor("y") - 0.1 * D.narrow(0, 0, 3)), tolerance) << t;
  EXPECT_LT(distance(to.tensor("q"), from.tensor("q") - 0.1 * (D.narrow(0, 3, 3) - E.narrow(0, 0, 3))), tolerance) << t;
  EXPECT_LT(distance(to.tensor("x"), from.tensor("x") - 0.1 * (E.narrow(0, 3, 2) - D.narrow(0, 6, 2))), tolerance) << t;
}

/// `all` steps at once, or `first` of them, a copy of the state, and the rest: the same bits in each of its tensors.
inline void expect_to_go_on(const Algorithm& algorithm, int64_t first, int64_t all) {
  State whole = algorithm.init(), parts = algorithm.init();
  algorithm.step(whole, all);
  algorithm.step(parts, first);
  State rest = parts.clone();
  algorithm.step(parts, 1);  // moves nothing that the copy holds
  algorithm.step(rest, all - first);
  for (const auto& [name, value] : whole.values()) {
    const auto* tensor = std::get_if<at::Tensor>(&value);
    EXPECT_TRUE(tensor == nullptr || at::equal(*tensor, rest.tensor(name))) << name;
  }
}

/// A state away from rest.
inline State somewhere(const Algorithm& algorithm) {
  State state = algorithm.init();
  state.set("q", at::tensor({0.5, -0.2, 0.9}, at::kDouble));
  return state;
}

}  // namespace bilevel::test
