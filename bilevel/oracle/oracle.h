#pragma once
#include <memory>

#include <ATen/core/Tensor.h>

#include "bilevel/problem/problem.h"

namespace bilevel {

enum class Labels;

struct Vjp {
  at::Tensor y;  // (∂y r)ᵀ w [dy]
  at::Tensor x;  // (∂x r)ᵀ w [dx]
};

/// The optimality map r(x, y), for a loss r = ∂y g, and its first derivatives around one point (x, y, batch).
///
/// Every product may be asked for many times. A direction may also be a block [k, d] of k directions, row by row, and the result
/// then is a block. x, y and all results have one dtype and device; results carry no graph.
class Linearization {
 public:
  virtual ~Linearization() = default;
  virtual at::Tensor value() = 0;                     // g, scalar
  virtual at::Tensor residual() = 0;                  // r = ∂y g [dy]
  virtual at::Tensor grad_x() = 0;                    // ∂x g [dx]
  virtual at::Tensor jvp_y(const at::Tensor& v) = 0;  // ∂y r · v: H v for a loss
  virtual Vjp vjp(const at::Tensor& w) = 0;           // both products in one pass
  /// As `vjp`, for products that are summed up: the entries of x that belong to single samples may be left to the process that
  /// has these samples, and be 0 elsewhere, until `Oracle::whole` brings them together.
  virtual Vjp vjp_share(const at::Tensor& w) { return vjp(w); }
  virtual at::Tensor jvp_x(const at::Tensor& u) = 0;         // ∂x r · u [dy]
  virtual at::Tensor gauss_newton(const at::Tensor& v) = 0;  // Jᵀ ∂zz g J v + ∂yy g|z v; throws Error without outputs
  virtual bool symmetric() const { return true; }
};

struct Gradients {
  at::Tensor value;  // scalar
  at::Tensor y;      // [dy]
  at::Tensor x;      // [dx]
};

/// What a method that moves x and y together asks at one point after another. Results are written into the caller's tensors, of
/// the dtype and device of x; an oracle that can keeps its buffers from one call to the next. Serves one thread.
class JointPass {
 public:
  virtual ~JointPass() = default;
  /// r = ∂y g [dy], H v [dy] and (∂x r)ᵀ v [dx] of the inner loss at one point, in one pass over the batch. Returns g.
  virtual double inner(const at::Tensor& x, const at::Tensor& y, const at::Tensor& v, const Batch& batch, const at::Tensor& r,
                       const at::Tensor& Hv, const at::Tensor& cross) = 0;
  /// ∂y f [dy] and ∂x f [dx]. Returns f.
  virtual double outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch, const at::Tensor& f_y,
                       const at::Tensor& f_x) = 0;
};

class OutputSpace;
struct OutputSamples;

/// All that algorithms may ask of a problem. Algorithms never see losses.
class Oracle {
 public:
  explicit Oracle(const Problem& problem) : problem_(problem) {}
  virtual ~Oracle() = default;

  virtual std::unique_ptr<Linearization> linearize_inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const = 0;

  // Without a graph. `inner` leaves x undefined: it is what an inner step needs.
  virtual Gradients inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const = 0;
  virtual Gradients outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const = 0;
  virtual at::Tensor inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const = 0;
  virtual at::Tensor inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const = 0;
  virtual at::Tensor outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const = 0;

  /// Gradients of the single samples of the inner likelihood (problem/likelihood.h),
  ///
  ///     s = √(w_i p) ∂y ℓ(z_i(y), t)   [B, k, dy],
  ///
  /// for k labels t of each of the batch's samples. Their outer products sum up to the batch's Fisher information, or to an
  /// estimate of it. Labels are drawn by the batch's seed and the number of the sample. For problems with an inner likelihood;
  /// here one sample after the other, which is the arithmetic of one gradient.
  virtual at::Tensor scores(const at::Tensor& x, const at::Tensor& y, const Batch& batch, Labels labels) const;

  /// By the calls above unless an oracle has a shorter way. The oracle must outlive it.
  virtual std::unique_ptr<JointPass> joint_pass() const;

  /// The losses as functionals of the outputs around (x, y) (oracle/output_space.h). Throws Error where the problem offers no
  /// outputs on both sides, or the oracle nothing of the kind.
  virtual std::unique_ptr<OutputSpace> output_space(const at::Tensor& x, const at::Tensor& y, const OutputSamples& samples) const;

  // Where several processes share the samples (oracle/distributed.h). In a single one both give back what they are given.
  /// A sum of x's from `vjp_share`, [dx], with the entries of all samples. What is whole stays as it is.
  virtual at::Tensor whole(const at::Tensor& x_bar) const { return x_bar; }
  /// The greatest over the processes of a number that was metered: what decides on further calls must decide alike in all of
  /// them.
  virtual int64_t greatest(int64_t metered) const { return metered; }

  const Problem& problem() const { return problem_; }

 private:
  const Problem& problem_;
};

}  // namespace bilevel
