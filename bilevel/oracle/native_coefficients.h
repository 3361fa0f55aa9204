#pragma once
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "bilevel/oracle/native_kernels.h"
#include "bilevel/problem/linear_form.h"

namespace bilevel::native {

/// Memory that is kept from one call to the next.
template <class T>
class Buffer {
 public:
  T* get(int64_t size);   // at least so many elements, of any value
  const T* data() const;  // as they are; there must be some

 private:
  at::Tensor memory_;
};

/// Throws Error where the form's maps do not fit its samples, y [dy], x [dx] or dtype.
void check_maps(const LinearForm& form, int64_t samples, int64_t dy, int64_t dx, at::ScalarType dtype);

/// s(x) of a batch's samples and λ(x), at one x after another, and their derivatives: by the form's maps where it gives such,
/// else by autograd through its functions.
template <class T>
class Coefficients {
 public:
  /// Keeps a reference to `form`, whose maps were checked.
  Coefficients(const LinearForm& form, int64_t dy, int64_t dx);

  /// x [dx], contiguous, without a graph. Throws Error where a function gives something that does not fit.
  void move_to(const at::Tensor& x, const Batch& batch, int64_t n);

  const T* weights() const { return weights_; }  // s [K, n]; null: 1
  const T* ridge() const { return ridge_; }      // λ [dy], or one for all; null: 0
  bool one_ridge() const { return one_ridge_; }

  /// What x alone adds to the loss, and its gradient added to `out` [dx].
  double prior() const;
  void add_prior_gradient(T* out) const;
  /// ∂x (a ⟨s, of_weights⟩ + b ⟨λ, y ∘ w⟩) [dx].
  void gradient(double a, const T* of_weights, double b, const T* y, const T* w, T* out);
  /// (∂s/∂x) u [K, n], (∂λ/∂x) u [dy]; false where x is not in them.
  bool weights_along(const T* u, T* out);
  bool ridge_along(const T* u, T* out);

 private:
  /// One map at x: t [m] and ∂t/∂x[element].
  struct Spread {
    const SpreadMap* map = nullptr;
    const int64_t* index = nullptr;
    const T* factor = nullptr;
    bool one_factor = false;
    bool by_sample = false;  // φ is taken of what the batch needs, and not of the whole part
    Buffer<T> gathered, values, slopes, t;

    int64_t element(int64_t j) const { return index ? index[j] : map->size == 1 ? 0 : j; }
    T factor_of(int64_t j) const { return factor ? factor[one_factor ? 0 : j] : T(1); }
  };
  struct TransposedProduct {  // c ↦ (∂t/∂x)ᵀ c as a function of c
    at::Tensor c, value;
  };

  static Spread spread_of(const SpreadMap& map);
  const T* evaluate(Spread& spread, const T* x, const int64_t* samples, int64_t m);
  template <class F>
  void for_each_slope(const Spread& spread, const int64_t* samples, int64_t m, F f) const;
  T other_weights(size_t k, int64_t b) const;
  void build_graph();
  static bool depends(const at::Tensor& t) { return t.defined() && t.requires_grad(); }
  at::Tensor along(const at::Tensor& t, TransposedProduct& transposed, const T* u);

  const LinearForm& form_;
  int64_t dy_ = 0, dx_ = 0, n_ = 0;  // n: of s, for all models
  std::vector<Spread> weight_spreads_;
  std::vector<Spread> ridge_spread_;  // one, or none
  Buffer<T> product_;
  Buffer<double> sums_;
  const T *weights_ = nullptr, *ridge_ = nullptr;
  bool one_ridge_ = false;

  at::Tensor x_;
  Batch batch_;
  at::Tensor weights_value_, ridge_value_;  // of the functions
  at::Tensor leaf_, weights_graph_, ridge_graph_;
  TransposedProduct weights_vjp_, ridge_vjp_;
};

}  // namespace bilevel::native
