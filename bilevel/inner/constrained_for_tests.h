#pragma once
#include <gtest/gtest.h>

#include <utility>

#include "bilevel/inner/inner_solver.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/inner_constraints.h"
#include "bilevel/problem/test_problems.h"

namespace bilevel {

/// A problem with constraints on y that do not depend on x.
class Constrained final : public TestProblem {
 public:
  Constrained(const Problem& base, InnerConstraints constraints) : base_(base), constraints_(std::move(constraints)) {
    outer_layout_ = base.outer_layout();
    inner_layout_ = base.inner_layout();
    x0_ = base.initial_outer();
    y0_ = base.initial_inner(x0_, 0);
  }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return base_.inner_loss(x, y, batch);
  }
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override {
    return base_.outer_loss(x, y, batch);
  }
  bool has_inner_constraints() const override { return true; }
  InnerConstraints inner_constraints(const at::Tensor&) const override { return constraints_; }

 private:
  const Problem& base_;
  InnerConstraints constraints_;
};

/// |∂g_j| ≤ λ where y_j = 0, and ∂g_j = −λ sign(y_j) elsewhere, with some of both, and a loss that counts the penalty.
inline void expect_lasso_conditions(const Problem& base, double lambda, const InnerSolution& s, double tolerance) {
  const AutodiffOracle oracle(base);
  const at::Tensor x = base.initial_outer(), g = oracle.inner(x, s.y, {}).y, zero = s.y.eq(0);
  EXPECT_EQ(s.status, Status::kConverged) << s.message;
  EXPECT_GT(zero.sum().item<int64_t>(), 2);
  EXPECT_LT(zero.sum().item<int64_t>(), s.y.size(0));
  EXPECT_LE(g.masked_select(zero).abs().max().item<double>(), lambda);
  EXPECT_LT((g + lambda * s.y.sign()).masked_select(zero.logical_not()).abs().max().item<double>(), tolerance);
  EXPECT_NEAR(s.loss, oracle.inner_value(x, s.y, {}).item<double>() + lambda * s.y.abs().sum().item<double>(), 1e-13);
  EXPECT_GT(s.initial_stationarity, 100 * s.stationarity);
}

/// 0 ≤ y ≤ top to the bit with some elements at either bound: there the gradient pushes outwards, and elsewhere it is 0.
inline void expect_box_conditions(const Problem& base, double top, const InnerSolution& s, double tolerance) {
  EXPECT_EQ(s.status, Status::kConverged) << s.message;
  const at::Tensor g = AutodiffOracle(base).inner(base.initial_outer(), s.y, {}).y;
  int at_lower = 0, at_upper = 0;
  for (int64_t j = 0; j < s.y.size(0); ++j) {
    const double y = s.y[j].item<double>(), r = g[j].item<double>();
    if (y == 0) {
      ++at_lower;
      EXPECT_GE(r, 0);
    } else if (y == top) {
      ++at_upper;
      EXPECT_LE(r, 0);
    } else {
      EXPECT_NEAR(r, 0, tolerance);
      EXPECT_GT(y, 0);
      EXPECT_LT(y, top);
    }
  }
  EXPECT_GT(at_lower, 0);
  EXPECT_GT(at_upper, 0);
}

}  // namespace bilevel
