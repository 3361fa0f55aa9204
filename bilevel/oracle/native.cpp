// With z_i = W a_i + c, D_i = ∂ℓ_i/∂z, K_i = ∂²ℓ_i/∂z² and u_i = V a_i for a direction V = (v's W, v's c):
//
//   g       = (1/n) Σ s_i ℓ_i + ½ Σ λ_j y_j²               (and what x alone adds)
//   ∂y g    = (1/n) Σ s_i D_i a_iᵀ + λ y                    ∂x g    = ∂x ⟨s, ℓ⟩/n + ½ ∂x ⟨λ, y²⟩
//   H v     = (1/n) Σ s_i K_i u_i a_iᵀ + λ v                (∂x r)ᵀ v = ∂x ⟨s, (D_iᵀ u_i)_i⟩/n + ∂x ⟨λ, y v⟩
//   ∂x r q  = (1/n) Σ (∂s q)_i D_i a_iᵀ + (∂λ q) y
//
// The sums over samples are the passes of native_kernels.h; s, λ and their ∂x are those of native_coefficients.h.
#include "bilevel/oracle/native.h"

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#if __has_include(<linux/mman.h>)
#include <linux/mman.h>
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <optional>
#include <type_traits>
#include <vector>

#include "bilevel/core/error.h"
#include "bilevel/oracle/native_coefficients.h"
#include "bilevel/oracle/native_kernels.h"
#include "bilevel/oracle/output_space.h"
#include "bilevel/problem/likelihood.h"
#include "bilevel/problem/linear_form.h"

namespace bilevel {
namespace native {
namespace {

constexpr int64_t kPieceSamples = 1024;      // summed up in float before they are added in double
constexpr int64_t kBlockBytes = 256 * 1024;  // of features: a quarter of a usual second-level cache
constexpr int64_t kShortRow = 128;           // elements: padding costs less than what rows across the cache's lines do
constexpr int64_t kRowsOfWeights = 32;       // of a block of directions, in one pass: what is multiplied should fit the cache too

Link link_of(LinearForm::Link link) {
  switch (link) {
    case LinearForm::Link::kLogistic: return Link::kLogistic;
    case LinearForm::Link::kSoftmax: return Link::kSoftmax;
    case LinearForm::Link::kPoisson: return Link::kPoisson;
    case LinearForm::Link::kSquared: break;
  }
  return Link::kSquared;
}

// Σ a_j b_j c_j in double; a one-element a stands for all. Eight sums, for one would wait for itself.
template <class T>
double triple_product(const T* a, bool one, const T* b, const T* c, int64_t size) {
  double sums[8] = {};
  for (int64_t j = 0; j < size; ++j) {
    sums[j % 8] += static_cast<double>(a[one ? 0 : j]) * static_cast<double>(b[j]) * static_cast<double>(c[j]);
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// A new vector without the dispatcher, which costs as much as a small product.
template <class T>
at::Tensor empty(int64_t size) {
  return at::detail::empty_cpu({size}, std::is_same_v<T, double> ? at::kDouble : at::kFloat);
}

// Lays what is read at random on large pages, where the system has them (Linux, since 6.1): each row of a batch is on a page of
// its own otherwise, and to look up where that is takes as long as to read the row.
void lay_on_large_pages([[maybe_unused]] const at::Tensor& rows) {
#ifdef MADV_COLLAPSE
  constexpr uintptr_t kLargePage = uintptr_t{2} << 20;
  const auto begin = reinterpret_cast<uintptr_t>(rows.const_data_ptr()), end = begin + rows.nbytes();
  const uintptr_t first = (begin + kLargePage - 1) / kLargePage * kLargePage, last = end / kLargePage * kLargePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_COLLAPSE);  // a hint: a failure changes nothing
#endif
}

template <class T>
void add_ridge(const Coefficients<T>& at_x, const T* v, int64_t dy, T* out) {
  const T* const lambda = at_x.ridge();
  if (!lambda) return;
  if (at_x.one_ridge()) {
    for (int64_t j = 0; j < dy; ++j) out[j] += lambda[0] * v[j];
  } else {
    for (int64_t j = 0; j < dy; ++j) out[j] += lambda[j] * v[j];
  }
}

}  // namespace

/// What a pass keeps from one call to the next.
struct Buffers {
  virtual ~Buffers() = default;
};

/// A linear form, laid out for the passes.
class Model {
 public:
  Model(const LinearForm& form, const Problem& problem, const char* which) : form_(form) {
    const std::string what = fmt::format("NativeOracle: the {} linear form", which);
    require(form.features.defined() && form.features.dim() == 2 && form.features.size(0) > 0 && form.outputs > 0,
            fmt::format("{} should have features [n, d] and at least one output.", what));
    const at::ScalarType dtype = form.features.scalar_type();
    require(dtype == at::kFloat || dtype == at::kDouble,
            fmt::format("{} has features of dtype {}; float32 or float64 would be right.", what, c10::toString(dtype)));
    samples_ = form.features.size(0);
    d_ = form.features.size(1);
    require(form.models > 0, fmt::format("{} should have at least one model, got {}.", what, form.models));
    require(problem.inner_layout().size() == weights(),
            fmt::format("{} has {} weights, and y has {}.", what, weights(), problem.inner_layout().size()));
    const bool softmax = form.link == LinearForm::Link::kSoftmax, logistic = form.link == LinearForm::Link::kLogistic;
    require(!logistic || form.outputs == 1, fmt::format("{} is logistic with {} outputs; it takes one.", what, form.outputs));
    const int64_t rows = softmax ? 1 : form.outputs;
    require(form.targets.defined() && form.targets.dim() == 2 && form.targets.size(0) == rows &&
                form.targets.size(1) == samples_ && form.targets.scalar_type() == (softmax ? at::kLong : dtype),
            fmt::format("{} should have targets [{}, {}] of dtype {}.", what, rows, samples_,
                        c10::toString(softmax ? at::kLong : dtype)));
    if (softmax) {
      require(form.targets.min().item<int64_t>() >= 0 && form.targets.max().item<int64_t>() < form.outputs,
              fmt::format("{} has a label outside 0…{}.", what, form.outputs - 1));
    }
    dx_ = problem.outer_layout().size();
    check_maps(form, samples_, weights(), dx_, dtype);
    features_ = form.features.layout() == at::kStrided ? form.features.detach().contiguous() : form.features.detach();
    targets_ = form.targets.detach().contiguous();
    if (features_.layout() == at::kSparseCsr) {
      row_starts_ = features_.crow_indices().to(at::kLong).contiguous();
      columns_ = features_.col_indices().to(at::kLong).contiguous();
      values_ = features_.values().contiguous();
      require(columns_.numel() == 0 || (columns_.min().item<int64_t>() >= 0 && columns_.max().item<int64_t>() < d_),
              fmt::format("{} has features with a column outside 0…{}.", what, d_ - 1));
      rows_ = kBlock;
      return;
    }

    pad_ = dtype == at::kDouble ? kPad<double> : kPad<float>;
    body_ = d_ / pad_ * pad_;
    const int64_t rest = d_ - body_;
    if (rest > 0 && pitch() <= kShortRow) {
      rows_copied_ = at::zeros({samples_, pitch()}, features_.options());
      rows_copied_.narrow(1, 0, d_).copy_(features_);
      ends_ = rows_copied_.narrow(1, body_, pad_);
    } else {
      ends_ = at::zeros({rest > 0 ? samples_ : 1, pad_}, features_.options());
      if (rest > 0) ends_.narrow(1, 0, rest).copy_(features_.narrow(1, body_, rest));
    }
    if (form.bias) ends_.select(1, rest).fill_(1);
    const int64_t row_bytes = std::max<int64_t>(d_ * features_.element_size(), 1);
    lay_on_large_pages(rows_copied_.defined() ? rows_copied_ : features_);
    rows_ = row_bytes * kBlock <= kBlockBytes ? kBlock : row_bytes * kBlock <= 2 * kBlockBytes ? 16 : 8;
  }

  at::ScalarType dtype() const { return features_.scalar_type(); }
  at::TensorOptions options() const { return at::TensorOptions(dtype()); }
  bool sparse() const { return row_starts_.defined(); }
  int64_t models() const { return form_.models; }
  int64_t rows() const { return form_.models * form_.outputs; }  // of V
  int64_t size() const { return samples_; }
  // Columns of V and G, and their elements for K C rows.
  int64_t pitch() const { return sparse() ? d_ + (form_.bias ? 1 : 0) : body_ + pad_; }
  int64_t packed_size() const { return rows() * pitch(); }
  int64_t hyperparameters() const { return dx_; }
  int64_t weights() const { return form_.models * model_weights(); }  // dy
  const LinearForm& form() const { return form_; }

  int64_t samples_of(const Batch& batch) const { return batch.size(samples_); }

  /// Buffers that an earlier call has left, null where there are none: as many are kept as threads have asked at once.
  std::unique_ptr<Buffers> take() const {
    const std::lock_guard lock(mutex_);
    if (spare_.empty()) return nullptr;
    std::unique_ptr<Buffers> one = std::move(spare_.back());
    spare_.pop_back();
    return one;
  }
  void give_back(std::unique_ptr<Buffers> one) const {
    const std::lock_guard lock(mutex_);
    spare_.push_back(std::move(one));
  }

  // The batch, its indices contiguous. Messages are only written where they are needed: a small product takes a microsecond.
  Batch checked(Batch batch) const {
    if (batch.full()) return batch;
    if (batch.samples.dim() != 1 || batch.samples.scalar_type() != at::kLong || batch.samples.size(0) == 0) {
      throw Error("NativeOracle: a batch should hold the indices of its samples, int64 [B].");
    }
    if (!batch.samples.is_contiguous()) batch.samples = batch.samples.contiguous();
    const int64_t* const index = batch.samples.const_data_ptr<int64_t>();
    const int64_t n = batch.samples.size(0);
    bool outside = false;
    for (int64_t i = 0; i < n; ++i) outside |= static_cast<uint64_t>(index[i]) >= static_cast<uint64_t>(samples_);
    if (!outside) return batch;
    const auto [low, high] = std::minmax_element(index, index + n);
    throw Error(
        fmt::format("NativeOracle: a batch names the samples {} to {}, and there are 0 to {}.", *low, *high, samples_ - 1));
  }

  template <class T>
  void check(const at::Tensor& t, int64_t size, const char* name, const char* caller) const {
    if (t.scalar_type() != dtype()) {
      throw Error(fmt::format("{}: {} is {}, and the problem's features are {}.", caller, name, c10::toString(t.scalar_type()),
                              c10::toString(dtype())));
    }
    if (t.dim() != 1 || t.size(0) != size) {
      throw Error(fmt::format("{}: {} should have shape [{}], got [{}].", caller, name, size, fmt::join(t.sizes(), ", ")));
    }
  }

  template <class T>
  Samples<T> samples(const Batch& batch, const T* weights) const {
    Samples<T> s;
    if (sparse()) {
      s.row_starts = row_starts_.const_data_ptr<int64_t>();
      s.columns = columns_.const_data_ptr<int64_t>();
      s.values = values_.const_data_ptr<T>();
      s.bias_column = form_.bias ? d_ : -1;
    } else {
      const at::Tensor& rows = rows_copied_.defined() ? rows_copied_ : features_;
      s.features = rows.const_data_ptr<T>();
      s.feature_pitch = rows.size(1);
      s.body = body_;
      s.ends = ends_.const_data_ptr<T>();
      s.end_pitch = ends_.size(0) > 1 || samples_ == 1 ? ends_.stride(0) : 0;
    }
    s.pitch = pitch();
    s.index = batch.full() ? nullptr : batch.samples.const_data_ptr<int64_t>();
    s.n = samples_of(batch);
    s.rows = rows_;
    s.link = link_of(form_.link);
    s.classes = form_.outputs;
    s.models = form_.models;
    if (targets_.scalar_type() == at::kLong) {
      s.labels = targets_.const_data_ptr<int64_t>();
    } else {
      s.targets = targets_.const_data_ptr<T>();
      s.target_pitch = samples_;
    }
    s.weights = weights;
    s.scale = 1.0 / static_cast<double>(s.n);
    return s;
  }

  // y, or a direction, as the passes take it: the i-th K C rows of k times as many.
  template <class T>
  void pack(const T* from, T* V, int64_t i = 0, int64_t k = 1) const {
    const int64_t C = form_.outputs;
    const int64_t stride = k * rows();  // of the columns of sparse features
    for (int64_t row = i * rows(); row < (i + 1) * rows(); from += model_weights()) {
      for (int64_t c = 0; c < C; ++c, ++row) {
        if (sparse()) {
          for (int64_t j = 0; j < d_; ++j) V[row + j * stride] = from[c * d_ + j];
          if (form_.bias) V[row + d_ * stride] = from[C * d_ + c];
        } else {
          T* to = std::copy_n(from + c * d_, d_, V + row * pitch());
          if (form_.bias) *to++ = from[C * d_ + c];
          std::fill(to, V + (row + 1) * pitch(), T(0));
        }
      }
    }
  }

  // The i-th K C rows of what the passes summed up, of k times as many, as a vector [dy].
  template <class T, class A>
  void unpack(const A* sums, T* out, int64_t i, int64_t k) const {
    const int64_t C = form_.outputs;
    const int64_t stride = k * rows();
    for (int64_t row = i * rows(); row < (i + 1) * rows(); out += model_weights()) {
      for (int64_t c = 0; c < C; ++c, ++row) {
        const A* const from = sparse() ? sums + row : sums + row * pitch();
        if (sparse()) {
          for (int64_t j = 0; j < d_; ++j) out[c * d_ + j] = static_cast<T>(from[j * stride]);
        } else {
          std::copy_n(from, d_, out + c * d_);
        }
        if (form_.bias) out[C * d_ + c] = static_cast<T>(from[sparse() ? d_ * stride : d_]);
      }
    }
  }

 private:
  int64_t model_weights() const { return form_.outputs * (d_ + (form_.bias ? 1 : 0)); }

  LinearForm form_;
  at::Tensor features_, targets_, ends_;
  at::Tensor row_starts_, columns_, values_;  // of sparse features
  at::Tensor rows_copied_;  // of few features, with their ends: rows that start and end with the cache's lines are fewer to fetch
  int64_t samples_ = 0, dx_ = 0, d_ = 0, pad_ = 0, body_ = 0, rows_ = 0;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<Buffers>> spare_;
};

namespace {

/// Σ of a pass over all blocks of the samples, [m, pitch]. Each thread sums up a piece of its samples after the other, and the
/// threads' sums are added in their order.
template <class T>
class Sums {
 public:
  /// pass(first, last, G, work) → a part of the value, which is returned. m = 0: nothing is summed up but that.
  template <class F>
  double run(const Samples<T>& s, int64_t m, F pass) {
    const int64_t blocks = s.blocks(), per_piece = std::max<int64_t>(1, kPieceSamples / s.rows);
    const int64_t pieces = (blocks + per_piece - 1) / per_piece;
    const int64_t threads = at::in_parallel_region() ? 1 : std::min<int64_t>(at::get_num_threads(), pieces);
    rows_ = m;
    const int64_t size = m * s.pitch, work_each = work_size(std::max(m, s.models * s.classes), s.classes);
    twice_ = std::is_same_v<T, float> && pieces > threads;  // float first, then double
    all_fine_ = fine_.get(threads * size);
    all_coarse_ = twice_ ? coarse_.get(threads * size) : nullptr;
    T* const work = work_.get(threads * work_each);
    double* const values = values_.get(threads);
    std::fill_n(all_fine_, threads * size, T(0));
    if (twice_) std::fill_n(all_coarse_, threads * size, 0.0);
    const auto share = [&](int64_t i) {
      T* const G = size > 0 ? all_fine_ + i * size : nullptr;
      double* const total = twice_ ? all_coarse_ + i * size : nullptr;
      values[i] = 0;
      for (int64_t p = pieces * i / threads; p < pieces * (i + 1) / threads; ++p) {
        values[i] += pass(p * per_piece, std::min(blocks, (p + 1) * per_piece), G, work + i * work_each);
        if (!twice_) continue;
        for (int64_t j = 0; j < size; ++j) {
          total[j] += static_cast<double>(G[j]);
          G[j] = 0;
        }
      }
    };
    if (threads == 1) {
      share(0);
      return values[0];
    }
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) share(i);
    });
    double value = 0;
    for (int64_t i = 0; i < threads; ++i) value += values[i];
    const auto add = [&](auto* all) {
      for (int64_t i = 1; i < threads; ++i) {
        for (int64_t j = 0; j < size; ++j) all[j] += all[i * size + j];
      }
    };
    if (twice_) {
      add(all_coarse_);
    } else {
      add(all_fine_);
    }
    return value;
  }

  /// The i-th of the vectors [dy] that were summed up.
  void unpack(const Model& model, int64_t i, T* out) const {
    const int64_t k = rows_ / model.rows();
    if (twice_) {
      model.unpack(all_coarse_, out, i, k);
    } else {
      model.unpack(all_fine_, out, i, k);
    }
  }

 private:
  Buffer<T> fine_, work_;
  Buffer<double> coarse_, values_;
  T* all_fine_ = nullptr;
  double* all_coarse_ = nullptr;
  int64_t rows_ = 0;
  bool twice_ = false;
};

/// The form at one (x, y, batch).
template <class T>
class AtPoint final : public Linearization {
 public:
  AtPoint(const Model& model, const at::Tensor& x, const at::Tensor& y, const Batch& batch, const char* caller)
      : model_(model),
        x_(x.detach().contiguous()),
        y_(y.detach().contiguous()),
        batch_(model.checked(batch)),
        n_(model.samples_of(batch_)),
        Kn_(model.models() * n_),
        at_x_(model.form(), model.weights(), model.hyperparameters()) {
    const at::NoGradGuard no_grad;
    model.check<T>(x_, model.hyperparameters(), "x", caller);
    model.check<T>(y_, model.weights(), "y", caller);
    at_x_.move_to(x_, batch_, n_);
    samples_ = model.samples<T>(batch_, at_x_.weights());
    model.pack(y_.const_data_ptr<T>(), packed_.get(model.packed_size()));
  }

  at::Tensor value() override {
    if (!value_) first_pass(nullptr);
    const at::Tensor out = at::detail::empty_cpu({}, model_.dtype());
    *out.mutable_data_ptr<T>() = static_cast<T>(*value_);
    return out;
  }

  at::Tensor residual() override {
    if (residual_.defined()) return residual_;
    residual_ = empty<T>(dy());
    T* const out = residual_.mutable_data_ptr<T>();
    if (!value_) {
      first_pass(out);
      return residual_;
    }
    // The forward pass was made: its state is enough.
    const T* w = at_x_.weights();
    if (!w) {
      T* const ones = ones_.get(Kn_);
      std::fill_n(ones, Kn_, T(1));
      w = ones;
    }
    sums_.run(samples_, rows(), [&](int64_t a, int64_t b, T* G, T* work) {
      passes<T>().weighted(samples_, w, 1, a, b, state_, G, work);
      return 0.0;
    });
    sums_.unpack(model_, 0, out);
    add_ridge(at_x_, y(), dy(), out);
    return residual_;
  }

  at::Tensor grad_x() override {
    if (!value_) first_pass(nullptr);
    const at::Tensor out = empty<T>(x_.numel());
    at_x_.gradient(1.0 / static_cast<double>(n_), losses_, 0.5, y(), y(), out.mutable_data_ptr<T>());
    at_x_.add_prior_gradient(out.mutable_data_ptr<T>());
    return out;
  }

  at::Tensor jvp_y(const at::Tensor& v) override { return products(v, nullptr); }

  Vjp vjp(const at::Tensor& w) override {
    const int64_t count = w.dim() == 2 ? w.size(0) : 1, dx = x_.numel();
    const T* cross = nullptr;
    Vjp out;
    out.y = products(w, &cross);
    const at::Tensor each = w.contiguous();
    out.x = empty<T>(count * dx);
    for (int64_t i = 0; i < count; ++i) {
      at_x_.gradient(1.0, cross + i * Kn_, 1.0, y(), each.const_data_ptr<T>() + i * dy(), out.x.mutable_data_ptr<T>() + i * dx);
    }
    if (w.dim() == 2) out.x = out.x.view({count, dx});
    return out;
  }

  at::Tensor jvp_x(const at::Tensor& u) override {
    const at::Tensor each = (u.dim() == 1 ? u.unsqueeze(0) : u).contiguous();
    const int64_t count = each.size(0), dx = x_.numel();
    const T* const directions = each.const_data_ptr<T>();
    if (!value_) first_pass(nullptr);
    const at::Tensor out = at::zeros({count, dy()}, y_.options());
    T* const to = out.mutable_data_ptr<T>();
    T* const s_dot = s_dot_.get(count * Kn_);
    bool weights_move = false;
    for (int64_t i = 0; i < count; ++i) weights_move = at_x_.weights_along(directions + i * dx, s_dot + i * Kn_);
    for (int64_t i = 0; weights_move && i < count; i += directions_at_once()) {
      const int64_t k = std::min(directions_at_once(), count - i);
      sums_.run(samples_, k * rows(), [&](int64_t a, int64_t b, T* G, T* work) {
        passes<T>().weighted(samples_, s_dot + i * Kn_, k, a, b, state_, G, work);
        return 0.0;
      });
      for (int64_t j = 0; j < k; ++j) sums_.unpack(model_, j, to + (i + j) * dy());
    }
    T* const lambda_dot = lambda_dot_.get(dy());
    for (int64_t i = 0; i < count; ++i) {
      if (!at_x_.ridge_along(directions + i * dx, lambda_dot)) break;
      for (int64_t j = 0; j < dy(); ++j) to[i * dy() + j] += lambda_dot[j] * y()[j];
    }
    return u.dim() == 1 ? out[0] : out;
  }

  // ℓ is convex in z, and z linear in y: the Gauss–Newton matrix is the Hessian.
  at::Tensor gauss_newton(const at::Tensor& v) override { return jvp_y(v); }

 private:
  int64_t rows() const { return model_.rows(); }
  int64_t dy() const { return model_.weights(); }
  const T* y() const { return y_.const_data_ptr<T>(); }
  int64_t directions_at_once() const { return std::max<int64_t>(1, kRowsOfWeights / rows()); }

  // The value, the losses and the state; with `out` the residual as well.
  void first_pass(T* out) {
    state_ = state_memory_.get(samples_.blocks() * rows() * kBlock);
    losses_ = losses_memory_.get(Kn_);
    const T* const V = packed_.get(0);
    double value = sums_.run(samples_, out ? rows() : 0, [&](int64_t a, int64_t b, T* G, T* work) {
      return passes<T>().gradient(samples_, V, a, b, G, state_, losses_, work);
    });
    if (at_x_.ridge()) value += 0.5 * triple_product(at_x_.ridge(), at_x_.one_ridge(), y(), y(), dy());
    value += at_x_.prior();
    value_ = value;
    if (!out) return;
    sums_.unpack(model_, 0, out);
    add_ridge(at_x_, y(), dy(), out);
  }

  // H v, and the cotangents [k, K, n] of the weights along with it.
  at::Tensor products(const at::Tensor& v, const T** cross) {
    if (!value_) first_pass(nullptr);
    const at::Tensor each = v.is_contiguous() ? v : v.contiguous();
    const int64_t count = each.dim() == 1 ? 1 : each.size(0);
    if (each.dim() < 1 || each.dim() > 2 || each.size(-1) != dy() || each.scalar_type() != model_.dtype()) {
      throw Error(fmt::format("NativeOracle: a direction should be {} [{}] or a block of such, got {} [{}].",
                              c10::toString(model_.dtype()), dy(), c10::toString(v.scalar_type()), fmt::join(v.sizes(), ", ")));
    }
    at::Tensor out = empty<T>(count * dy());
    T* const to = out.mutable_data_ptr<T>();
    T* const slopes = cross ? slopes_.get(count * Kn_) : nullptr;
    if (cross) *cross = slopes;
    for (int64_t i = 0; i < count; i += directions_at_once()) {
      const int64_t k = std::min(directions_at_once(), count - i);
      const T* const some = each.const_data_ptr<T>() + i * dy();
      T* const V = directions_.get(k * model_.packed_size());
      for (int64_t j = 0; j < k; ++j) model_.pack(some + j * dy(), V, j, k);
      sums_.run(samples_, k * rows(), [&](int64_t a, int64_t b, T* G, T* work) {
        passes<T>().curvature(samples_, V, k, a, b, state_, G, slopes ? slopes + i * Kn_ : nullptr, work);
        return 0.0;
      });
      for (int64_t j = 0; j < k; ++j) {
        sums_.unpack(model_, j, to + (i + j) * dy());
        add_ridge(at_x_, some + j * dy(), dy(), to + (i + j) * dy());
      }
    }
    return each.dim() == 1 ? out : out.view(each.sizes());
  }

  const Model& model_;
  const at::Tensor x_, y_;
  const Batch batch_;
  const int64_t n_, Kn_;  // of the batch, and of all its models
  Coefficients<T> at_x_;
  Samples<T> samples_;
  Sums<T> sums_;
  std::optional<double> value_;  // set with state_ and losses_ by a first pass
  T *state_ = nullptr, *losses_ = nullptr;
  at::Tensor residual_;
  Buffer<T> packed_, directions_, state_memory_, losses_memory_, slopes_, s_dot_, lambda_dot_, ones_;
};

/// A pass over one of the two losses, its buffers kept.
template <class T>
class Joint final : public Buffers {
 public:
  explicit Joint(const Model& model) : model_(model), at_x_(model.form(), model.weights(), model.hyperparameters()) {}

  /// All at once; without v only r and, in `cross`, ∂x of the loss itself, each where it is defined. Returns the loss.
  double operator()(const at::Tensor& x, const at::Tensor& y, const at::Tensor* v, const Batch& given, const at::Tensor& r,
                    const at::Tensor* Hv, const at::Tensor& cross, const char* caller = "NativeOracle::joint_pass") {
    const int64_t dy = model_.weights(), dx = model_.hyperparameters(), rows = model_.rows();
    model_.check<T>(x, dx, "x", caller);
    model_.check<T>(y, dy, "y", caller);
    if (r.defined()) model_.check<T>(r, dy, "the residual", caller);
    if (cross.defined()) model_.check<T>(cross, dx, "the derivative by x", caller);
    if (v) model_.check<T>(*v, dy, "v", caller);
    if (v) model_.check<T>(*Hv, dy, "H v", caller);
    const Batch batch = model_.checked(given);
    const int64_t n = model_.samples_of(batch);
    at_x_.move_to(x, batch, n);
    const Samples<T> samples = model_.samples<T>(batch, at_x_.weights());
    const T* const at_y = y.const_data_ptr<T>();
    const T* const along = v ? v->const_data_ptr<T>() : nullptr;
    T* const V = packed_.get(2 * model_.packed_size());
    model_.pack(at_y, V, 0, v ? 2 : 1);
    const int64_t Kn = model_.models() * n;
    T *const losses = losses_.get(Kn), *const slopes = slopes_.get(Kn);
    double value = 0;
    if (v) {
      model_.pack(along, V, 1, 2);
      value = sums_.run(samples, 2 * rows, [&](int64_t a, int64_t b, T* G, T* work) {
        return passes<T>().joint(samples, V, a, b, G, losses, slopes, work);
      });
      sums_.unpack(model_, 1, Hv->mutable_data_ptr<T>());
      add_ridge(at_x_, along, dy, Hv->mutable_data_ptr<T>());
      at_x_.gradient(1.0, slopes, 1.0, at_y, along, cross.mutable_data_ptr<T>());
    } else {
      value = sums_.run(samples, r.defined() ? rows : 0, [&](int64_t a, int64_t b, T* G, T* work) {
        return passes<T>().gradient(samples, V, a, b, G, nullptr, losses, work);
      });
      if (cross.defined()) {
        at_x_.gradient(samples.scale, losses, 0.5, at_y, at_y, cross.mutable_data_ptr<T>());
        at_x_.add_prior_gradient(cross.mutable_data_ptr<T>());
      }
    }
    if (r.defined()) {
      sums_.unpack(model_, 0, r.mutable_data_ptr<T>());
      add_ridge(at_x_, at_y, dy, r.mutable_data_ptr<T>());
    }
    if (at_x_.ridge()) value += 0.5 * triple_product(at_x_.ridge(), at_x_.one_ridge(), at_y, at_y, dy);
    return value + at_x_.prior();
  }

 private:
  const Model& model_;
  Coefficients<T> at_x_;
  Sums<T> sums_;
  Buffer<T> packed_, losses_, slopes_;
};

template <class T>
class NativeJointPass final : public JointPass {
 public:
  NativeJointPass(const Model* inner, const Model* outer, std::unique_ptr<JointPass> otherwise)
      : otherwise_(std::move(otherwise)) {
    if (inner) inner_.emplace(*inner);
    if (outer) outer_.emplace(*outer);
  }
  double inner(const at::Tensor& x, const at::Tensor& y, const at::Tensor& v, const Batch& batch, const at::Tensor& r,
               const at::Tensor& Hv, const at::Tensor& cross) override {
    if (!inner_) return otherwise_->inner(x, y, v, batch, r, Hv, cross);
    return (*inner_)(x, y, &v, batch, r, &Hv, cross);
  }
  double outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch, const at::Tensor& f_y,
               const at::Tensor& f_x) override {
    if (!outer_) return otherwise_->outer(x, y, batch, f_y, f_x);
    return (*outer_)(x, y, nullptr, batch, f_y, nullptr, f_x);
  }

 private:
  std::unique_ptr<JointPass> otherwise_;
  std::optional<Joint<T>> inner_, outer_;
};

// The loss, and r and ∂x of it where they are wanted, with the features' element type.
struct Wanted {
  bool y = false, x = false;
};
template <class T>
Gradients first_order(const Model& model, const at::Tensor& x, const at::Tensor& y, const Batch& batch, Wanted wanted,
                      const char* caller) {
  std::unique_ptr<Buffers> buffers = model.take();
  if (!buffers) buffers = std::make_unique<Joint<T>>(model);
  Gradients out{at::detail::empty_cpu({}, model.dtype()), {}, {}};
  if (wanted.y) out.y = empty<T>(model.weights());
  if (wanted.x) out.x = empty<T>(model.hyperparameters());
  const at::NoGradGuard no_grad;
  *out.value.mutable_data_ptr<T>() = static_cast<T>(static_cast<Joint<T>&>(*buffers)(
      x.detach().contiguous(), y.detach().contiguous(), nullptr, batch, out.y, nullptr, out.x, caller));
  model.give_back(std::move(buffers));
  return out;
}
Gradients first_order(const Model& model, const at::Tensor& x, const at::Tensor& y, const Batch& batch, Wanted wanted,
                      const char* caller) {
  return model.dtype() == at::kDouble ? first_order<double>(model, x, y, batch, wanted, caller)
                                      : first_order<float>(model, x, y, batch, wanted, caller);
}

const LinearForm* inner_form(const Problem& problem) {
  return problem.has_optimality_map() ? nullptr : problem.inner_linear_form();
}

bool fits(const LinearForm* form) {
  return form && form->features.defined() && form->features.device().is_cpu() &&
         (form->features.layout() == at::kStrided || form->features.layout() == at::kSparseCsr) &&
         (form->features.scalar_type() == at::kFloat || form->features.scalar_type() == at::kDouble);
}

}  // namespace
}  // namespace native

using native::first_order;
using native::fits;
using native::inner_form;
using native::Model;

bool NativeOracle::takes(const Problem& problem) { return fits(inner_form(problem)) || fits(problem.outer_linear_form()); }

NativeOracle::NativeOracle(const Problem& problem) : Oracle(problem), autodiff_(problem) {
  require(takes(problem),
          "NativeOracle: the problem offers no linear form, of dense or CSR features on the CPU; use the autodiff oracle.");
  if (fits(inner_form(problem))) inner_ = std::make_unique<Model>(*inner_form(problem), problem, "inner");
  if (fits(problem.outer_linear_form())) outer_ = std::make_unique<Model>(*problem.outer_linear_form(), problem, "outer");
}

NativeOracle::~NativeOracle() = default;

std::unique_ptr<Linearization> NativeOracle::linearize_inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  if (!inner_) return autodiff_.linearize_inner(x, y, batch);
  check_point(problem(), x, y, "NativeOracle::linearize_inner");
  if (inner_->dtype() == at::kDouble) {
    return std::make_unique<native::AtPoint<double>>(*inner_, x, y, batch, "NativeOracle::linearize_inner");
  }
  return std::make_unique<native::AtPoint<float>>(*inner_, x, y, batch, "NativeOracle::linearize_inner");
}

Gradients NativeOracle::inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  if (!inner_) return autodiff_.inner(x, y, batch);
  return first_order(*inner_, x, y, batch, {.y = true}, "NativeOracle::inner");
}

Gradients NativeOracle::outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  if (!outer_) return autodiff_.outer(x, y, batch);
  check_point(problem(), x, y, "NativeOracle::outer");
  return first_order(*outer_, x, y, batch, {.y = true, .x = true}, "NativeOracle::outer");
}

at::Tensor NativeOracle::inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  if (!inner_) return autodiff_.inner_grad_x(x, y, batch);
  return first_order(*inner_, x, y, batch, {.x = true}, "NativeOracle::inner_grad_x").x;
}

at::Tensor NativeOracle::inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  if (!inner_) return autodiff_.inner_value(x, y, batch);
  return first_order(*inner_, x, y, batch, {}, "NativeOracle::inner_value").value;
}

at::Tensor NativeOracle::outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  if (!outer_) return autodiff_.outer_value(x, y, batch);
  return first_order(*outer_, x, y, batch, {}, "NativeOracle::outer_value").value;
}

std::unique_ptr<OutputSpace> NativeOracle::output_space(const at::Tensor& x, const at::Tensor& y,
                                                        const OutputSamples& samples) const {
  return autodiff_.output_space(x, y, samples);
}

// z = W a + c, and s = (D a_iᵀ row by row, then D) for each D = √(w_i p) ∂z ℓ.
at::Tensor NativeOracle::scores(const at::Tensor& x, const at::Tensor& y, const Batch& batch, Labels labels) const {
  const LinearForm* form = problem().inner_linear_form();
  if (form == nullptr || form->models != 1 || form->features.layout() != at::kStrided)
    return autodiff_.scores(x, y, batch, labels);
  check_point(problem(), x, y, "NativeOracle::scores");
  const at::NoGradGuard no_grad;
  const at::Tensor samples = batch.full() ? at::arange(form->features.size(0), at::kLong) : batch.samples;
  const at::Tensor a = batch.full() ? form->features : form->features.index_select(0, samples);
  const int64_t rows = form->outputs * a.size(1);
  const at::Tensor Wa = y.narrow(0, 0, rows).view({form->outputs, a.size(1)}).mm(a.t());
  const at::Tensor z = form->bias ? Wa + y.narrow(0, rows, form->outputs).unsqueeze(1) : Wa;
  const at::Tensor D = output_scores(problem().inner_likelihood(x, batch), z, labels, batch.seed, samples).permute({2, 0, 1});
  const at::Tensor by_W = (D.unsqueeze(3) * a.unsqueeze(1).unsqueeze(1)).flatten(2);
  return form->bias ? at::cat({by_W, D}, 2) : by_W;
}

std::unique_ptr<JointPass> NativeOracle::joint_pass() const {
  const Model* const any = inner_ ? inner_.get() : outer_.get();
  // Where one of the two has no form, the calls of this oracle are its way.
  if (any->dtype() == at::kDouble) {
    return std::make_unique<native::NativeJointPass<double>>(inner_.get(), outer_.get(), Oracle::joint_pass());
  }
  return std::make_unique<native::NativeJointPass<float>>(inner_.get(), outer_.get(), Oracle::joint_pass());
}

}  // namespace bilevel
