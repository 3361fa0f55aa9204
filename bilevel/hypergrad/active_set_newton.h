#pragma once
#include <memory>
#include <optional>
#include <string>

#include "bilevel/hypergrad/active_set.h"
#include "bilevel/hypergrad/inner_newton.h"

// Certificates where y is constrained: the inner problem on its active set is one without constraints.
namespace bilevel {

/// The surface on which y moves while the active set A stays, in coordinates z [k] of the free directions:
///
///   Y(x, z) = u + c_A(x) − E_F⁺ (E (u + c_A) − e),   u = N z
///
/// with c the bounds, or zeros, and N [dy, k] orthonormal columns that span {v : v_A = 0, E v = 0} at the x of construction, kept
/// for every x. `problem` must outlive it.
class Surface {
 public:
  Surface(const Problem& problem, const at::Tensor& x, HeldSet set, const at::Tensor& y_like);
  int64_t dim() const { return dim_; }               // k
  bool independent() const { return independent_; }  // the equalities are, on the free coordinates; if not, k is 0
  const HeldSet& set() const { return set_; }
  const Problem& problem() const { return problem_; }

  at::Tensor lift(const at::Tensor& z) const;  // N z, of rows too
  at::Tensor pull(const at::Tensor& v) const;  // Nᵀ v, of rows too
  ConstraintVectors constraints(const at::Tensor& x) const;
  at::Tensor y(const ConstraintVectors& at_x, const at::Tensor& z) const;        // Y(x, z), differentiable by x
  at::Tensor project(const ConstraintVectors& at_x, const at::Tensor& v) const;  // P v: on the free directions at x, of rows too

 private:
  const Problem& problem_;
  HeldSet set_;
  at::Tensor like_, free_, index_;  // of the free coordinates
  at::Tensor reflectors_, tau_;     // E_Fᵀ = Q R, as geqrf leaves it; undefined without equalities
  int64_t equalities_ = 0, dim_ = 0;
  bool independent_ = true;
};

/// An inner problem with constraints on y as the one without that it is on an active set: y is z there (Surface), the l1 penalty
/// is smooth and a part of g, and all products are those of the oracle of `in`, by the chain rule.
class OnActiveSet {
 public:
  /// `in` must outlive it.
  OnActiveSet(const EstimatorInput& in, HeldSet set);
  ~OnActiveSet();
  const EstimatorInput& input() const { return *input_; }
  const Surface& surface() const { return *surface_; }
  at::Tensor y(const at::Tensor& x, const at::Tensor& z) const;
  Margins margins(const at::Tensor& x, const at::Tensor& y) const;  // of this set at (x, y), with r of the full batch

 private:
  const EstimatorInput& in_;
  std::unique_ptr<Surface> surface_;
  std::unique_ptr<Problem> problem_;
  std::unique_ptr<Oracle> oracle_;
  InnerSolution solution_;
  std::unique_ptr<EstimatorInput> input_;
};

/// Newton's method on the inner problem, with or without constraints on y. With them, the primal active-set method (Nocedal &
/// Wright 2006, §16.5) goes on from the set that y lies on: Newton's method solves on the set; a bound that is met on the way
/// there joins it, and where none is, the coordinate leaves that is held with the most negative force. Where it ends, y satisfies
/// the conditions of a minimum to rounding, whatever set the inner solve has ended on.
class ActiveSetNewton {
 public:
  ActiveSetNewton(const EstimatorInput& in, InnerNewtonOptions options);
  /// From (x, y), on until ‖r‖ is rounding or, with a target, that share of what it was. Later solves begin from the set of the
  /// first.
  bool solve(const at::Tensor& x, const at::Tensor& y, double target = 0.0);
  const std::string& why() const { return why_; }  // it did not get there, in one sentence
  const at::Tensor& y() const { return y_; }       // where `solve` has ended [dy]
  /// The inner problem as Newton's method solves it, and its solution there: on the active set, in coordinates of its free
  /// directions.
  const EstimatorInput& input() const;
  InnerNewton& newton() { return *now_->newton; }
  const OnActiveSet* active_set() const { return now_->on.get(); }  // null: y is not constrained
  int64_t dim() const { return input().solution.y.size(0); }        // 0: nothing is free

 private:
  struct Place {
    std::unique_ptr<OnActiveSet> on;
    std::unique_ptr<InnerNewton> newton;
  };
  void adopt(const HeldSet& set);
  const EstimatorInput& in_;
  InnerNewtonOptions options_;
  Place first_, other_;
  Place* now_ = &first_;
  bool settled_ = false;
  at::Tensor y_;
  std::string why_;
};

}  // namespace bilevel
