#include "bilevel/oracle/native_coefficients.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <type_traits>

#include "bilevel/core/error.h"
#include "bilevel/oracle/autograd.h"

namespace bilevel::native {
namespace {

template <class T>
constexpr at::ScalarType kType = std::is_same_v<T, double> ? at::kDouble : at::kFloat;

template <class T>
at::Tensor view_of(const T* values, int64_t n) {
  return at::from_blob(const_cast<T*>(values), {n}, kType<T>);  // only read
}

Phi phi_of(SpreadMap::Phi phi) {
  switch (phi) {
    case SpreadMap::Phi::kExp: return Phi::kExp;
    case SpreadMap::Phi::kSigmoid: return Phi::kSigmoid;
    case SpreadMap::Phi::kSoftplus: return Phi::kSoftplus;
    case SpreadMap::Phi::kIdentity: break;
  }
  return Phi::kIdentity;
}

void check_map(const SpreadMap& map, int64_t most, int64_t dx, at::ScalarType dtype, const std::string& what) {
  require(map.first >= 0 && map.size >= 0 && map.first + map.size <= dx,
          fmt::format("{}: the part from {} to {} does not lie in x [{}].", what, map.first, map.first + map.size, dx));
  require(map.index.defined() || map.size <= 1 || map.size == most,
          fmt::format("{}: without an index the part should have 1 or {} elements, and it has {}.", what, most, map.size));
  if (map.index.defined()) {
    require(
        map.index.is_contiguous() && map.index.scalar_type() == at::kLong && map.index.dim() == 1 && map.index.size(0) == most,
        fmt::format("{}: index should be contiguous int64 [{}], got {} [{}].", what, most, c10::toString(map.index.scalar_type()),
                    fmt::join(map.index.sizes(), ", ")));
    require(map.index.min().item<int64_t>() >= 0 && map.index.max().item<int64_t>() < map.size,
            fmt::format("{}: index has an element outside 0…{}.", what, map.size - 1));
  }
  if (!map.factor.defined()) return;
  require(
      map.factor.is_contiguous() && map.factor.scalar_type() == dtype && (map.factor.numel() == 1 || map.factor.numel() == most),
      fmt::format("{}: factor should be contiguous {} with 1 or {} elements, got {} [{}].", what, c10::toString(dtype), most,
                  c10::toString(map.factor.scalar_type()), fmt::join(map.factor.sizes(), ", ")));
}

}  // namespace

void check_maps(const LinearForm& form, int64_t samples, int64_t dy, int64_t dx, at::ScalarType dtype) {
  require(form.models == 1 || form.sample_weight_maps.empty(),
          fmt::format("LinearForm::sample_weight_maps: the weights of {} models are told by sample_weights.", form.models));
  for (const SpreadMap& map : form.sample_weight_maps) check_map(map, samples, dx, dtype, "LinearForm::sample_weight_maps");
  if (form.ridge_map) check_map(*form.ridge_map, dy, dx, dtype, "LinearForm::ridge_map");
}

template <class T>
T* Buffer<T>::get(int64_t size) {
  if (!memory_.defined() || memory_.numel() < size) memory_ = at::detail::empty_cpu({std::max<int64_t>(size, 1)}, kType<T>);
  return static_cast<T*>(memory_.mutable_data_ptr());
}

template <class T>
const T* Buffer<T>::data() const {
  return static_cast<const T*>(memory_.const_data_ptr());
}

template <class T>
Coefficients<T>::Coefficients(const LinearForm& form, int64_t dy, int64_t dx) : form_(form), dy_(dy), dx_(dx) {
  for (const SpreadMap& map : form.sample_weight_maps) weight_spreads_.push_back(spread_of(map));
  if (form.ridge_map) ridge_spread_.push_back(spread_of(*form.ridge_map));
}

template <class T>
typename Coefficients<T>::Spread Coefficients<T>::spread_of(const SpreadMap& map) {
  Spread spread;
  spread.map = &map;
  if (map.index.defined()) spread.index = map.index.const_data_ptr<int64_t>();
  if (map.factor.defined()) {
    spread.factor = map.factor.const_data_ptr<T>();
    spread.one_factor = map.factor.numel() == 1;
  }
  return spread;
}

// `samples`: which of the spread's elements are wanted, m of them; null: the first m.
template <class T>
const T* Coefficients<T>::evaluate(Spread& spread, const T* x, const int64_t* samples, int64_t m) {
  const SpreadMap& map = *spread.map;
  T* const t = spread.t.get(m);
  const auto element = [&](int64_t b) { return samples ? samples[b] : b; };
  if (map.size == 0) {
    for (int64_t b = 0; b < m; ++b) t[b] = spread.factor_of(element(b));
    return t;
  }
  const T* part = x + map.first;
  spread.by_sample = samples && map.size > m;
  const int64_t count = spread.by_sample ? m : map.size;
  if (spread.by_sample) {
    T* const gathered = spread.gathered.get(m);
    for (int64_t b = 0; b < m; ++b) gathered[b] = part[spread.element(samples[b])];
    part = gathered;
  }
  T* const values = spread.values.get(count);
  passes<T>().map(phi_of(map.phi), part, count, values, spread.slopes.get(count));
  if (spread.by_sample) {
    for (int64_t b = 0; b < m; ++b) t[b] = spread.factor_of(samples[b]) * values[b];
  } else {
    for (int64_t b = 0; b < m; ++b) t[b] = spread.factor_of(element(b)) * values[spread.element(element(b))];
  }
  return t;
}

// f(b, e, ∂t_b/∂x[e]).
template <class T>
template <class F>
void Coefficients<T>::for_each_slope(const Spread& spread, const int64_t* samples, int64_t m, F f) const {
  const SpreadMap& map = *spread.map;
  if (map.size == 0) return;
  const T* const slopes = spread.slopes.data();
  for (int64_t b = 0; b < m; ++b) {
    const int64_t j = samples ? samples[b] : b, e = spread.element(j);
    f(b, map.first + e, spread.factor_of(j) * slopes[spread.by_sample ? b : e]);
  }
}

template <class T>
void Coefficients<T>::move_to(const at::Tensor& x, const Batch& batch, int64_t n) {
  x_ = x;
  batch_ = batch;
  n_ = form_.models * n;
  leaf_ = weights_graph_ = ridge_graph_ = at::Tensor();
  weights_vjp_ = TransposedProduct();
  ridge_vjp_ = TransposedProduct();
  weights_ = ridge_ = nullptr;
  const T* const at_x = x.const_data_ptr<T>();
  const int64_t* const samples = batch.full() ? nullptr : batch.samples.const_data_ptr<int64_t>();
  if (!weight_spreads_.empty()) {
    weights_ = evaluate(weight_spreads_.front(), at_x, samples, n);
    for (size_t k = 1; k < weight_spreads_.size(); ++k) {
      const T* const more = evaluate(weight_spreads_[k], at_x, samples, n);
      T* const all = product_.get(n);
      for (int64_t b = 0; b < n; ++b) all[b] = weights_[b] * more[b];
      weights_ = all;
    }
  } else if (form_.sample_weights) {
    weights_value_ = form_.sample_weights(x, batch).detach().contiguous();
    const at::Tensor& s = weights_value_;
    const std::vector<int64_t> shape = form_.models == 1 ? std::vector<int64_t>{n} : std::vector<int64_t>{form_.models, n};
    require(s.sizes() == at::IntArrayRef(shape) && s.scalar_type() == kType<T>,
            fmt::format("LinearForm::sample_weights: expected {} [{}], got {} [{}].", c10::toString(kType<T>),
                        fmt::join(shape, ", "), c10::toString(s.scalar_type()), fmt::join(s.sizes(), ", ")));
    weights_ = s.const_data_ptr<T>();
  }
  if (!ridge_spread_.empty()) {
    Spread& ridge = ridge_spread_.front();
    one_ridge_ = !ridge.index && ridge.map->size <= 1 && (!ridge.factor || ridge.one_factor);
    ridge_ = evaluate(ridge, at_x, nullptr, one_ridge_ ? 1 : dy_);
  } else if (form_.ridge) {
    ridge_value_ = form_.ridge(x).detach().contiguous();
    const at::Tensor& lambda = ridge_value_;
    one_ridge_ = lambda.dim() == 0;
    require((one_ridge_ || (lambda.dim() == 1 && lambda.size(0) == dy_)) && lambda.scalar_type() == kType<T>,
            fmt::format("LinearForm::ridge: expected {}, a scalar or [{}], got {} [{}].", c10::toString(kType<T>), dy_,
                        c10::toString(lambda.scalar_type()), fmt::join(lambda.sizes(), ", ")));
    ridge_ = lambda.const_data_ptr<T>();
  }
}

// The product of the maps of s but for the k-th.
template <class T>
T Coefficients<T>::other_weights(size_t k, int64_t b) const {
  T product(1);
  for (size_t l = 0; l < weight_spreads_.size(); ++l) {
    if (l != k) product *= weight_spreads_[l].t.data()[b];
  }
  return product;
}

template <class T>
void Coefficients<T>::gradient(double a, const T* of_weights, double b, const T* y, const T* w, T* out) {
  double* const sums = sums_.get(dx_);  // many weights may share one element of x
  std::fill_n(sums, dx_, 0.0);
  const int64_t* const samples = batch_.full() ? nullptr : batch_.samples.const_data_ptr<int64_t>();
  for (size_t k = 0; k < weight_spreads_.size(); ++k) {
    for_each_slope(weight_spreads_[k], samples, n_, [&](int64_t i, int64_t e, T slope) {
      sums[e] += a * static_cast<double>(of_weights[i]) * static_cast<double>(slope * other_weights(k, i));
    });
  }
  for (const Spread& ridge : ridge_spread_) {
    if (one_ridge_) {
      double product = 0;
      for (int64_t j = 0; j < dy_; ++j) product += static_cast<double>(y[j]) * static_cast<double>(w[j]);
      for_each_slope(ridge, nullptr, 1,
                     [&](int64_t, int64_t e, T slope) { sums[e] += b * product * static_cast<double>(slope); });
    } else {
      for_each_slope(ridge, nullptr, dy_, [&](int64_t j, int64_t e, T slope) {
        sums[e] += b * static_cast<double>(y[j]) * static_cast<double>(w[j]) * static_cast<double>(slope);
      });
    }
  }
  const bool weights_by_graph = weight_spreads_.empty() && form_.sample_weights;
  const bool ridge_by_graph = ridge_spread_.empty() && form_.ridge;
  if (weights_by_graph || ridge_by_graph) {
    build_graph();
    const auto add = [&](const at::Tensor& t, const at::Tensor& cotangent) {
      const at::Tensor more = gradients(t, {leaf_}, cotangent, /*retain_graph=*/true)[0].contiguous();
      const T* const values = more.const_data_ptr<T>();
      for (int64_t e = 0; e < dx_; ++e) sums[e] += static_cast<double>(values[e]);
    };
    if (depends(weights_graph_)) add(weights_graph_, view_of(of_weights, n_).view(weights_graph_.sizes()) * a);
    if (depends(ridge_graph_)) {
      const at::Tensor Y = view_of(y, dy_), W = view_of(w, dy_);
      add(ridge_graph_, one_ridge_ ? Y.dot(W) * b : Y * W * b);
    }
  }
  for (int64_t e = 0; e < dx_; ++e) out[e] = static_cast<T>(sums[e]);
}

template <class T>
double Coefficients<T>::prior() const {
  const at::NoGradGuard no_grad;
  return form_.prior ? form_.prior(x_).template item<double>() : 0.0;
}

template <class T>
void Coefficients<T>::add_prior_gradient(T* out) const {
  if (!form_.prior) return;
  const at::AutoGradMode grad_mode(true);
  const at::Tensor x = leaf(x_);
  const at::Tensor gradient = gradients(form_.prior(x), {x}, {})[0].contiguous();
  const T* const values = gradient.const_data_ptr<T>();
  for (int64_t e = 0; e < dx_; ++e) out[e] += values[e];
}

template <class T>
bool Coefficients<T>::weights_along(const T* u, T* out) {
  if (weight_spreads_.empty()) {
    if (!form_.sample_weights) return false;
    build_graph();
    if (!depends(weights_graph_)) return false;
    const at::Tensor found = along(weights_graph_, weights_vjp_, u).contiguous();
    std::copy_n(found.const_data_ptr<T>(), n_, out);
    return true;
  }
  std::fill_n(out, n_, T(0));
  bool moved = false;
  const int64_t* const samples = batch_.full() ? nullptr : batch_.samples.const_data_ptr<int64_t>();
  for (size_t k = 0; k < weight_spreads_.size(); ++k) {
    for_each_slope(weight_spreads_[k], samples, n_, [&](int64_t i, int64_t e, T slope) {
      out[i] += slope * other_weights(k, i) * u[e];
      moved = true;
    });
  }
  return moved;
}

template <class T>
bool Coefficients<T>::ridge_along(const T* u, T* out) {
  if (ridge_spread_.empty()) {
    if (!form_.ridge) return false;
    build_graph();
    if (!depends(ridge_graph_)) return false;
    const at::Tensor found = along(ridge_graph_, ridge_vjp_, u).expand({dy_}).contiguous();
    std::copy_n(found.const_data_ptr<T>(), dy_, out);
    return true;
  }
  const Spread& ridge = ridge_spread_.front();
  if (ridge.map->size == 0) return false;
  for_each_slope(ridge, nullptr, one_ridge_ ? 1 : dy_, [&](int64_t j, int64_t e, T slope) { out[j] = slope * u[e]; });
  if (one_ridge_) std::fill(out + 1, out + dy_, out[0]);
  return true;
}

// s(x) and λ(x) with their graphs.
template <class T>
void Coefficients<T>::build_graph() {
  if (leaf_.defined()) return;
  const at::AutoGradMode grad_mode(true);
  leaf_ = leaf(x_);
  if (weight_spreads_.empty() && form_.sample_weights) weights_graph_ = form_.sample_weights(leaf_, batch_);
  if (ridge_spread_.empty() && form_.ridge) ridge_graph_ = form_.ridge(leaf_);
}

template <class T>
at::Tensor Coefficients<T>::along(const at::Tensor& t, TransposedProduct& transposed, const T* u) {
  if (!transposed.value.defined()) {
    const at::AutoGradMode grad_mode(true);
    transposed.c = at::zeros_like(t, t.options().requires_grad(false)).requires_grad_(true);
    transposed.value = gradients(t, {leaf_}, transposed.c, /*retain_graph=*/true, /*create_graph=*/true)[0];
  }
  return gradients(transposed.value, {transposed.c}, view_of(u, dx_), /*retain_graph=*/true)[0];
}

template class Buffer<float>;
template class Buffer<double>;
template class Coefficients<float>;
template class Coefficients<double>;

}  // namespace bilevel::native
