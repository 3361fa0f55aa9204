#include "bilevel/core/vectors.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/grad_mode.h>

#include <cmath>

namespace bilevel {
namespace {

constexpr int64_t kShort = 8192;  // beyond, what a call costs is nothing beside the memory

bool alike(const at::Tensor& a, const at::Tensor& b) {
  return a.scalar_type() == b.scalar_type() && b.is_cpu() && b.is_contiguous() && a.sizes() == b.sizes();
}

// f(T()) for short contiguous float or double vectors on the CPU; false where they are not.
template <class F>
bool directly(const at::Tensor& t, F f) {
  if (!t.is_cpu() || t.numel() > kShort || !t.is_contiguous()) return false;
  if (t.scalar_type() == at::kFloat) {
    f(float());
  } else if (t.scalar_type() == at::kDouble) {
    f(double());
  } else {
    return false;
  }
  return true;
}

template <class F>
bool directly(const at::Tensor& a, const at::Tensor& b, F f) {
  return alike(a, b) && directly(a, f);
}

// Eight sums, for one would wait for itself.
template <class T>
double dot(const T* a, const T* b, int64_t size) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    for (int64_t k = 0; k < 8; ++k) sums[k] += static_cast<double>(a[i + k]) * static_cast<double>(b[i + k]);
  }
  for (; i < size; ++i) sums[i % 8] += static_cast<double>(a[i]) * static_cast<double>(b[i]);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

}  // namespace

double dot_of(const at::Tensor& a, const at::Tensor& b) {
  double product = 0;
  const bool done = directly(a, b, [&](auto t) {
    using T = decltype(t);
    product = dot(a.const_data_ptr<T>(), b.const_data_ptr<T>(), a.numel());
  });
  return done ? product : a.dot(b).item<double>();
}

double norm_of(const at::Tensor& v) {
  double square = 0;
  const bool done = directly(v, [&](auto t) {
    using T = decltype(t);
    square = dot(v.const_data_ptr<T>(), v.const_data_ptr<T>(), v.numel());
  });
  return done ? std::sqrt(square) : at::linalg_vector_norm(v).item<double>();
}

double max_norm_of(const at::Tensor& v) { return v.defined() && v.numel() > 0 ? v.detach().abs().max().item<double>() : 0.0; }

void add_scaled(const at::Tensor& y, double a, const at::Tensor& x) {
  const bool done = directly(y, x, [&](auto t) {
    using T = decltype(t);
    T* const to = y.mutable_data_ptr<T>();
    const T* const from = x.const_data_ptr<T>();
    const T factor = static_cast<T>(a);
    for (int64_t i = 0; i < y.numel(); ++i) to[i] += factor * from[i];
  });
  if (!done) y.add_(x, a);
}

void scale(const at::Tensor& y, double a) {
  const bool done = directly(y, [&](auto t) {
    using T = decltype(t);
    T* const to = y.mutable_data_ptr<T>();
    for (int64_t i = 0; i < y.numel(); ++i) to[i] *= static_cast<T>(a);
  });
  if (!done) y.mul_(a);
}

at::Tensor sum_of(const at::Tensor& x, double a, const at::Tensor& y) {
  at::Tensor sum;
  const bool done = directly(x, y, [&](auto t) {
    using T = decltype(t);
    sum = at::detail::empty_cpu(x.sizes(), x.scalar_type());
    T* const to = sum.mutable_data_ptr<T>();
    const T *const first = x.const_data_ptr<T>(), *const second = y.const_data_ptr<T>();
    const T factor = static_cast<T>(a);
    for (int64_t i = 0; i < x.numel(); ++i) to[i] = first[i] + factor * second[i];
  });
  if (done) return sum;
  const at::NoGradGuard no_grad;
  return x.add(y, a);
}

}  // namespace bilevel
