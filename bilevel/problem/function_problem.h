#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "bilevel/problem/inner_constraints.h"
#include "bilevel/problem/problem.h"

namespace bilevel {

struct FunctionProblemOptions {
  using Loss = std::function<at::Tensor(const at::Tensor& x, const at::Tensor& y)>;
  Loss inner_loss = {};                            // g, a scalar built by differentiable operations
  Loss outer_loss = {};                            // f
  at::Tensor x0 = {};                              // [dx], where the outer variables start
  at::Tensor y0 = {};                              // [dy], where the inner solve starts; of x0's dtype and device
  Layout outer_layout = {};                        // names of the parts of x; empty: one part "x"
  Layout inner_layout = {};                        // names of the parts of y; empty: one part "y"
  std::vector<Constraint> outer_constraints = {};  // one for each part of x, or none at all
  /// In place of inner_loss: r(x, y) [dy], zero at y*(x), where y is a root, a fixed point, or solves a KKT system.
  Loss optimality_map = {};
  bool symmetric = false;  // ∂y r = (∂y r)ᵀ everywhere: cg and minres then serve
  using Constraints = std::function<InnerConstraints(const at::Tensor& x)>;
  Constraints inner_constraints = {};  // bounds, equalities and an l1 penalty on y (problem/inner_constraints.h)
};

/// A problem given by two functions of (x, y), the outer loss and the inner loss or optimality map: the shortest way to state
/// one. Whoever wants minibatches, several inner problems or more than losses derives from Problem instead.
class FunctionProblem final : public Problem {
 public:
  /// Throws Error where a function is missing, or where x0, y0 and the layouts do not fit each other.
  explicit FunctionProblem(FunctionProblemOptions options);

  const Layout& outer_layout() const override { return options_.outer_layout; }
  const Layout& inner_layout() const override { return options_.inner_layout; }
  at::Tensor inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  at::Tensor initial_outer() const override { return options_.x0; }
  at::Tensor initial_inner(const at::Tensor& x, int64_t slice) const override;
  std::vector<Constraint> outer_constraints() const override { return options_.outer_constraints; }
  bool has_optimality_map() const override { return static_cast<bool>(options_.optimality_map); }
  at::Tensor optimality_map(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const override;
  bool optimality_map_is_symmetric() const override { return options_.symmetric; }
  bool has_inner_constraints() const override { return static_cast<bool>(options_.inner_constraints); }
  InnerConstraints inner_constraints(const at::Tensor& x) const override;

 private:
  FunctionProblemOptions options_;
};

}  // namespace bilevel
