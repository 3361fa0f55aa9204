#pragma once
#include <utility>

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

}  // namespace bilevel
