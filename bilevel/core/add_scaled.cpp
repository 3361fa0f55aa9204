#include "bilevel/core/add_scaled.h"

#include <ATen/ATen.h>

namespace bilevel {
namespace {

constexpr int64_t kShort = 4096;  // beyond, what a call costs is nothing beside the memory

// f(pointer type) for short contiguous float or double vectors on the CPU.
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

}  // namespace

void add_scaled(const at::Tensor& y, double a, const at::Tensor& x) {
  const bool alike = x.scalar_type() == y.scalar_type() && x.is_cpu() && x.is_contiguous() && x.sizes() == y.sizes();
  const bool done = alike && directly(y, [&](auto t) {
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

}  // namespace bilevel
