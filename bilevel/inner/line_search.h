#pragma once
#include <cstdint>
#include <functional>

#include "bilevel/oracle/oracle.h"

namespace bilevel {

/// φ(t) = g(y − t d) and what was found there.
struct LinePoint {
  double t = 0;
  double loss = 0;
  double slope = 0;  // φ'(t) = −⟨∂y g, d⟩
  at::Tensor y;
  Gradients gradients = {};
};

struct LineSearchOptions {
  double decrease = 1e-4;  // c₁ of sufficient decrease (Armijo)
  double curvature = 0.9;  // c₂: |φ'(t)| ≤ c₂ |φ'(0)|
  int64_t max_evaluations = 20;
  double rounding = 1e-15;  // of the loss, relative: differences below it say nothing
};

/// A step that satisfies the strong Wolfe conditions (Nocedal & Wright 2006, algorithms 3.5 and 3.6), starting from t = `first`.
///
/// Where the loss changes by less than its rounding, the slopes alone decide (the approximate Wolfe conditions of Hager & Zhang
/// 2005). After `max_evaluations` the lowest point found that decreases the loss sufficiently is given; t = 0: there was none.
/// `start` is the point t = 0, whose slope is negative.
LinePoint strong_wolfe(const std::function<LinePoint(double)>& evaluate, const LinePoint& start, double first,
                       const LineSearchOptions& options = {});

}  // namespace bilevel
