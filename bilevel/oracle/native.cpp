// With z_i = W a_i + c, D_i = ∂ℓ_i/∂z, K_i = ∂²ℓ_i/∂z² and u_i = V a_i for a direction V = (v's W, v's c):
//
//   g       = (1/n) Σ s_i ℓ_i + ½ Σ λ_j y_j²               (what x alone adds is autograd's too)
//   ∂y g    = (1/n) Σ s_i D_i a_iᵀ + λ y                    ∂x g    = ∂x ⟨s, ℓ⟩/n + ½ ∂x ⟨λ, y²⟩
//   H v     = (1/n) Σ s_i K_i u_i a_iᵀ + λ v                (∂x r)ᵀ v = ∂x ⟨s, (D_iᵀ u_i)_i⟩/n + ∂x ⟨λ, y v⟩
//   ∂x r q  = (1/n) Σ (∂s q)_i D_i a_iᵀ + (∂λ q) y
//
// The sums over samples are the passes of native_kernels.h; ∂x is autograd's, through s(x) and λ(x) alone.
#include "bilevel/oracle/native.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>
#include <type_traits>

#include "bilevel/core/error.h"
#include "bilevel/oracle/autograd.h"
#include "bilevel/oracle/native_kernels.h"
#include "bilevel/problem/linear_form.h"

namespace bilevel {
namespace {

constexpr int64_t kPieceSamples = 1024;      // summed up in float before they are added in double
constexpr int64_t kBlockBytes = 256 * 1024;  // of features: a quarter of a usual second-level cache
constexpr int64_t kRowsOfWeights = 32;       // of a block of directions, in one pass: what is multiplied should fit the cache too

native::Link link_of(LinearForm::Link link) {
  switch (link) {
    case LinearForm::Link::kLogistic: return native::Link::kLogistic;
    case LinearForm::Link::kSoftmax: return native::Link::kSoftmax;
    case LinearForm::Link::kPoisson: return native::Link::kPoisson;
    case LinearForm::Link::kSquared: break;
  }
  return native::Link::kSquared;
}

template <class T>
native::Passes<T> passes() {
  if constexpr (std::is_same_v<T, float>) {
    return native::float_passes();
  } else {
    return native::double_passes();
  }
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

// Calls f(T()) with the element type of `dtype`.
template <class F>
auto with_type(at::ScalarType dtype, F f) {
  return dtype == at::kDouble ? f(double()) : f(float());
}

template <class T>
const T* data_or_null(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr<T>() : nullptr;
}

}  // namespace

/// A linear form, laid out for the passes.
class NativeOracle::Model {
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
    features_ = form.features.detach().contiguous();
    targets_ = form.targets.detach().contiguous();

    pad_ = dtype == at::kDouble ? native::kPad<double> : native::kPad<float>;
    body_ = d_ / pad_ * pad_;
    const int64_t rest = d_ - body_;
    ends_ = at::zeros({rest > 0 ? samples_ : 1, pad_}, features_.options());
    if (rest > 0) ends_.narrow(1, 0, rest).copy_(features_.narrow(1, body_, rest));
    if (form.bias) ends_.select(1, rest).fill_(1);
    const int64_t row_bytes = std::max<int64_t>(d_ * features_.element_size(), 1);
    rows_ = row_bytes * native::kBlock <= kBlockBytes ? native::kBlock : row_bytes * native::kBlock <= 2 * kBlockBytes ? 16 : 8;
  }

  at::ScalarType dtype() const { return features_.scalar_type(); }
  at::TensorOptions options() const { return features_.options(); }
  int64_t rows() const { return form_.models * form_.outputs; }  // of V
  int64_t models() const { return form_.models; }
  int64_t outputs() const { return form_.outputs; }
  int64_t pitch() const { return body_ + pad_; }
  int64_t weights() const { return form_.models * model_weights(); }  // dy
  const LinearForm& form() const { return form_; }

  void check(const at::Tensor& samples) const {
    if (samples.dim() != 1 || samples.scalar_type() != at::kLong || samples.size(0) == 0) {
      throw Error("NativeOracle: a batch should hold the indices of its samples, int64 [B].");
    }
    const at::Tensor flat = samples.contiguous();
    const int64_t* const index = flat.const_data_ptr<int64_t>();
    const auto [low, high] = std::minmax_element(index, index + flat.numel());
    if (*low >= 0 && *high < samples_) return;  // no message is written where none is needed: a small product takes 2 µs
    throw Error(
        fmt::format("NativeOracle: a batch names the samples {} to {}, and there are 0 to {}.", *low, *high, samples_ - 1));
  }

  template <class T>
  native::Samples<T> samples(const at::Tensor& index, const at::Tensor& weights) const {
    native::Samples<T> s;
    s.features = features_.const_data_ptr<T>();
    s.feature_pitch = d_;
    s.body = body_;
    s.ends = ends_.const_data_ptr<T>();
    s.end_pitch = ends_.size(0) > 1 || samples_ == 1 ? pad_ : 0;
    s.pitch = pitch();
    s.index = data_or_null<int64_t>(index);
    s.n = index.defined() ? index.size(0) : samples_;
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
    s.weights = data_or_null<T>(weights);
    s.scale = 1.0 / static_cast<double>(s.n);
    return s;
  }

  // Rows of y, or of a block of directions, as the passes take them: [k K C, pitch].
  template <class T>
  at::Tensor packed(const T* from, int64_t k) const {
    const int64_t C = form_.outputs;
    at::Tensor out = at::empty({k * rows(), pitch()}, options());
    T* to = out.mutable_data_ptr<T>();
    for (int64_t i = 0; i < k * models(); ++i, from += model_weights()) {
      for (int64_t c = 0; c < C; ++c, to += pitch()) {
        std::copy(from + c * d_, from + (c + 1) * d_, to);
        to[d_] = form_.bias ? from[C * d_ + c] : T(0);
        std::fill(to + d_ + 1, to + pitch(), T(0));
      }
    }
    return out;
  }

  // What the passes summed up, [k K C, pitch] of A, plus ridge · v, as rows [k, dy].
  template <class T, class A>
  void unpack(const A* sums, int64_t k, const at::Tensor& ridge, const T* v, T* out) const {
    const int64_t C = form_.outputs, dy = weights();
    const T* const lambda = data_or_null<T>(ridge);
    const bool one = lambda && ridge.dim() == 0;
    T* to = out;
    for (int64_t i = 0; i < k * models(); ++i, to += model_weights()) {
      for (int64_t c = 0; c < C; ++c, sums += pitch()) {
        for (int64_t j = 0; j < d_; ++j) to[c * d_ + j] = static_cast<T>(sums[j]);
        if (form_.bias) to[C * d_ + c] = static_cast<T>(sums[d_]);
      }
    }
    if (!lambda) return;
    for (int64_t i = 0; i < k; ++i, out += dy) {
      if (one) {
        for (int64_t j = 0; j < dy; ++j) out[j] += lambda[0] * v[j];
      } else {
        for (int64_t j = 0; j < dy; ++j) out[j] += lambda[j] * v[j];
      }
      v += dy;
    }
  }

 private:
  int64_t model_weights() const { return form_.outputs * (d_ + (form_.bias ? 1 : 0)); }

  LinearForm form_;
  at::Tensor features_, targets_, ends_;
  int64_t samples_ = 0, d_ = 0, pad_ = 0, body_ = 0, rows_ = 0;
};

/// The form at one (x, y, batch).
class NativeOracle::AtPoint final : public Linearization {
 public:
  AtPoint(const Model& model, const at::Tensor& x, const at::Tensor& y, const Batch& batch, const char* caller)
      : model_(model), batch_(batch), x_(x.detach()), y_(y.detach().contiguous()) {
    const at::NoGradGuard no_grad;
    for (const auto& [t, name] : {std::pair(&x_, "x"), std::pair(&y_, "y")}) {
      if (t->scalar_type() == model.dtype()) continue;
      throw Error(fmt::format("{}: {} is {}, and the problem's features are {}.", caller, name, c10::toString(t->scalar_type()),
                              c10::toString(model.dtype())));
    }
    if (y_.dim() != 1 || y_.size(0) != model.weights()) {
      throw Error(fmt::format("{}: y should have shape [{}], got [{}].", caller, model.weights(), fmt::join(y_.sizes(), ", ")));
    }
    if (!batch_.full()) {
      batch_.samples = batch_.samples.contiguous();
      model.check(batch_.samples);
    }
    n_ = batch_.full() ? model.form().features.size(0) : batch_.samples.size(0);
    if (model.form().sample_weights) weights_ = checked_weights(model.form().sample_weights(x_, batch_)).detach().contiguous();
    if (model.form().ridge) ridge_ = checked_ridge(model.form().ridge(x_)).detach().contiguous();
    packed_ = with_type(model_.dtype(), [&](auto t) { return model_.packed<decltype(t)>(y_.const_data_ptr<decltype(t)>(), 1); });
  }

  at::Tensor value() override {
    if (!value_) forward();
    // A diverged loss may be past the greatest float, which scalar_tensor refuses.
    return at::scalar_tensor(*value_, at::kDouble).to(model_.dtype());
  }

  at::Tensor residual() override {
    const at::NoGradGuard no_grad;
    if (residual_.defined()) return residual_;
    residual_ = at::empty_like(y_);
    with_type(model_.dtype(), [&](auto t) {
      using T = decltype(t);
      if (value_) {  // the forward pass was made: its state is enough
        const at::Tensor w = weights_.defined() ? weights_ : at::ones({model_.models() * n_}, model_.options());
        sums<T>(1, y_.const_data_ptr<T>(), ridge_, residual_.mutable_data_ptr<T>(),
                [&](const auto& s, int64_t a, int64_t b, T* G, T* work) {
                  passes<T>().weighted(s, w.const_data_ptr<T>(), 1, a, b, state_.const_data_ptr<T>(), G, work);
                  return 0.0;
                });
      } else {
        first_pass<T>(residual_.mutable_data_ptr<T>());
      }
    });
    return residual_;
  }

  at::Tensor grad_x() override {
    if (!value_) forward();
    const at::Tensor of_weights = (losses_ / static_cast<double>(n_)).view(weights_shape());
    const at::Tensor out = grad_through(
        of_weights, [&] { return y_ * y_ / 2; }, [&] { return y_.dot(y_) / 2; });
    if (!model_.form().prior) return out;
    const at::AutoGradMode grad_mode(true);
    const at::Tensor x = leaf(x_);
    return out + gradients(model_.form().prior(x), {x}, {})[0];
  }

  at::Tensor jvp_y(const at::Tensor& v) override { return products(v, nullptr); }

  Vjp vjp(const at::Tensor& w) override {
    at::Tensor cross;
    Vjp out;
    out.y = products(w, &cross);
    if (w.dim() == 1) {
      out.x = cross_product(cross[0].view(weights_shape()), w);
      return out;
    }
    std::vector<at::Tensor> rows;
    for (int64_t i = 0; i < w.size(0); ++i) rows.push_back(cross_product(cross[i].view(weights_shape()), w[i]));
    out.x = rows.empty() ? at::empty({0, x_.size(0)}, x_.options()) : at::stack(rows);
    return out;
  }

  at::Tensor jvp_x(const at::Tensor& u) override {
    const at::Tensor rows = u.dim() == 1 ? u.unsqueeze(0) : u;
    std::vector<at::Tensor> weights, ridges;
    for (int64_t i = 0; i < rows.size(0); ++i) {
      if (depends(weights_of_x())) weights.push_back(along(weights_of_x(), weights_vjp_, rows[i]));
      if (depends(ridge_of_x())) ridges.push_back(along(ridge_of_x(), ridge_vjp_, rows[i]));
    }
    const at::NoGradGuard no_grad;
    at::Tensor out = at::zeros({rows.size(0), y_.size(0)}, y_.options());
    if (!weights.empty()) {
      if (!value_) forward();
      const at::Tensor s_dot = at::stack(weights).contiguous();
      with_type(model_.dtype(), [&](auto t) {
        using T = decltype(t);
        const int64_t step = directions_at_once();
        for (int64_t i = 0; i < rows.size(0); i += step) {
          const int64_t k = std::min(step, rows.size(0) - i);
          sums<T>(k, nullptr, {}, out.mutable_data_ptr<T>() + i * y_.size(0),
                  [&](const auto& s, int64_t a, int64_t b, T* G, T* work) {
                    passes<T>().weighted(s, s_dot.const_data_ptr<T>() + i * model_.models() * n_, k, a, b, state_.const_data_ptr<T>(), G, work);
                    return 0.0;
                  });
        }
      });
    }
    for (size_t i = 0; i < ridges.size(); ++i) out[static_cast<int64_t>(i)].add_(ridges[i] * y_);
    return u.dim() == 1 ? out[0] : out;
  }

  // ℓ is convex in z, and z linear in y: the Gauss–Newton matrix is the Hessian.
  at::Tensor gauss_newton(const at::Tensor& v) override { return jvp_y(v); }

 private:
  std::vector<int64_t> weights_shape() const {
    return model_.models() == 1 ? std::vector<int64_t>{n_} : std::vector<int64_t>{model_.models(), n_};
  }

  const at::Tensor& checked_weights(const at::Tensor& s) const {
    if (s.sizes() == at::IntArrayRef(weights_shape()) && s.scalar_type() == model_.dtype()) return s;
    throw Error(fmt::format("LinearForm::sample_weights: expected {} [{}], got {} [{}].", c10::toString(model_.dtype()),
                            fmt::join(weights_shape(), ", "), c10::toString(s.scalar_type()), fmt::join(s.sizes(), ", ")));
  }
  const at::Tensor& checked_ridge(const at::Tensor& lambda) const {
    const bool fits = lambda.dim() == 0 || (lambda.dim() == 1 && lambda.size(0) == y_.size(0));
    if (fits && lambda.scalar_type() == model_.dtype()) return lambda;
    throw Error(fmt::format("LinearForm::ridge: expected {}, a scalar or [{}], got {} [{}].", c10::toString(model_.dtype()),
                            y_.size(0), c10::toString(lambda.scalar_type()), fmt::join(lambda.sizes(), ", ")));
  }

  int64_t directions_at_once() const { return std::max<int64_t>(1, kRowsOfWeights / model_.rows()); }

  // Σ of `pass` over all blocks, plus ridge · v, into `out` ([k, dy], or null where only what `pass` returns is wanted).
  // Each thread sums up a piece of its samples after the other, and the threads' sums are added in their order.
  template <class T, class F>
  double sums(int64_t k, const T* v, const at::Tensor& ridge, T* out, F pass) const {
    const native::Samples<T> s = model_.samples<T>(batch_.samples, weights_);
    const int64_t blocks = s.blocks(), per_piece = std::max<int64_t>(1, kPieceSamples / s.rows);
    const int64_t pieces = (blocks + per_piece - 1) / per_piece;
    const int64_t threads = at::in_parallel_region() ? 1 : std::min<int64_t>(at::get_num_threads(), pieces);
    const int64_t m = k * model_.rows(), size = out ? m * s.pitch : 0;
    const bool twice = std::is_same_v<T, float> && pieces > threads;  // float first, then double
    const at::Tensor fine = at::empty({threads, size}, model_.options());
    std::fill_n(fine.mutable_data_ptr<T>(), fine.numel(), T(0));
    const at::Tensor coarse = twice ? at::zeros({threads, size}, at::kDouble) : at::Tensor();
    std::vector<double> values(static_cast<size_t>(threads), 0.0);
    at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
      const at::Tensor work = at::empty({native::work_size(m, model_.outputs())}, model_.options());
      for (int64_t i = begin; i < end; ++i) {
        T* const G = size > 0 ? fine.mutable_data_ptr<T>() + i * size : nullptr;
        double* const total = twice ? coarse.mutable_data_ptr<double>() + i * size : nullptr;
        for (int64_t p = pieces * i / threads; p < pieces * (i + 1) / threads; ++p) {
          values[static_cast<size_t>(i)] +=
              pass(s, p * per_piece, std::min(blocks, (p + 1) * per_piece), G, work.mutable_data_ptr<T>());
          if (!twice) continue;
          for (int64_t j = 0; j < size; ++j) {
            total[j] += static_cast<double>(G[j]);
            G[j] = 0;
          }
        }
      }
    });
    double value = 0;
    for (const double part : values) value += part;
    if (size == 0) return value;
    const auto finish = [&](auto* all) {
      for (int64_t i = 1; i < threads; ++i) {
        for (int64_t j = 0; j < size; ++j) all[j] += all[i * size + j];
      }
      model_.unpack<T>(all, k, ridge, v, out);
    };
    if (twice) {
      finish(coarse.mutable_data_ptr<double>());
    } else {
      finish(fine.mutable_data_ptr<T>());
    }
    return value;
  }

  // The value, the losses and the state; with `out` the residual as well.
  template <class T>
  void first_pass(T* out) {
    const native::Samples<T> s = model_.samples<T>(batch_.samples, weights_);
    state_ = at::empty({s.blocks(), model_.rows(), native::kBlock}, model_.options());
    losses_ = at::empty({model_.models() * n_}, model_.options());
    double value = sums<T>(1, y_.const_data_ptr<T>(), ridge_, out, [&](const auto& all, int64_t a, int64_t b, T* G, T* work) {
      return passes<T>().gradient(all, packed_.const_data_ptr<T>(), a, b, G, state_.mutable_data_ptr<T>(),
                                  losses_.mutable_data_ptr<T>(), work);
    });
    if (ridge_.defined()) {
      const T* const y = y_.const_data_ptr<T>();
      value += 0.5 * triple_product(ridge_.const_data_ptr<T>(), ridge_.dim() == 0, y, y, y_.size(0));
    }
    if (model_.form().prior) value += model_.form().prior(x_).template item<double>();
    value_ = value;
  }

  void forward() {
    const at::NoGradGuard no_grad;
    with_type(model_.dtype(), [&](auto t) { first_pass<decltype(t)>(nullptr); });
  }

  // H v, and the cotangents [k, K n] of the weights along with it.
  at::Tensor products(const at::Tensor& v, at::Tensor* cross) {
    if (!value_) forward();
    const at::NoGradGuard no_grad;
    const at::Tensor rows = v.contiguous();
    const int64_t dy = y_.size(0), count = rows.dim() == 1 ? 1 : rows.size(0);
    if (rows.dim() < 1 || rows.dim() > 2 || rows.size(-1) != dy || rows.scalar_type() != model_.dtype()) {
      throw Error(fmt::format("NativeOracle: a direction should be {} [{}] or a block of such, got {} [{}].",
                              c10::toString(model_.dtype()), dy, c10::toString(v.scalar_type()), fmt::join(v.sizes(), ", ")));
    }
    const at::Tensor out = at::empty_like(rows);
    if (cross) *cross = at::empty({count, model_.models() * n_}, model_.options());
    with_type(model_.dtype(), [&](auto t) {
      using T = decltype(t);
      const int64_t step = directions_at_once();
      for (int64_t i = 0; i < count; i += step) {
        const int64_t k = std::min(step, count - i);
        const T* const some = rows.const_data_ptr<T>() + i * dy;
        const at::Tensor V = model_.packed<T>(some, k);
        sums<T>(k, some, ridge_, out.mutable_data_ptr<T>() + i * dy, [&](const auto& s, int64_t a, int64_t b, T* G, T* work) {
          passes<T>().curvature(s, V.const_data_ptr<T>(), k, a, b, state_.const_data_ptr<T>(), G,
                                cross ? cross->mutable_data_ptr<T>() + i * model_.models() * n_ : nullptr, work);
          return 0.0;
        });
      }
    });
    return out;
  }

  at::Tensor cross_product(const at::Tensor& of_weights, const at::Tensor& w) {
    return grad_through(
        of_weights, [&] { return y_ * w; }, [&] { return y_.dot(w); });
  }

  // s(x) and λ(x) with their graphs.
  void build_graph() {
    if (x_leaf_.defined()) return;
    const at::AutoGradMode grad_mode(true);
    x_leaf_ = leaf(x_);
    if (model_.form().sample_weights) weights_graph_ = model_.form().sample_weights(x_leaf_, batch_);
    if (model_.form().ridge) ridge_graph_ = model_.form().ridge(x_leaf_);
  }
  const at::Tensor& weights_of_x() {
    build_graph();
    return weights_graph_;
  }
  const at::Tensor& ridge_of_x() {
    build_graph();
    return ridge_graph_;
  }
  static bool depends(const at::Tensor& t) { return t.defined() && t.requires_grad(); }

  // ∂x (⟨s, of_weights⟩ + ⟨λ, of_ridge⟩), where of_ridge is each() for one strength a weight, all() for one in all.
  template <class Each, class All>
  at::Tensor grad_through(const at::Tensor& of_weights, Each each, All all) {
    at::Tensor out;
    if (depends(weights_of_x())) out = gradients(weights_graph_, {x_leaf_}, of_weights, /*retain_graph=*/true)[0];
    if (depends(ridge_of_x())) {
      const at::Tensor cotangent = ridge_graph_.dim() == 0 ? all() : each();
      const at::Tensor more = gradients(ridge_graph_, {x_leaf_}, cotangent, /*retain_graph=*/true)[0];
      out = out.defined() ? out + more : more;
    }
    return out.defined() ? out : at::zeros_like(x_);
  }

  // (∂t/∂x) u, as the derivative of c ↦ (∂t/∂x)ᵀ c along u.
  struct TransposedProduct {
    at::Tensor c, value;
  };
  at::Tensor along(const at::Tensor& t, TransposedProduct& transposed, const at::Tensor& u) {
    if (!transposed.value.defined()) {
      const at::AutoGradMode grad_mode(true);
      transposed.c = at::zeros_like(t, t.options().requires_grad(false)).requires_grad_(true);
      transposed.value = gradients(t, {x_leaf_}, transposed.c, /*retain_graph=*/true, /*create_graph=*/true)[0];
    }
    return gradients(transposed.value, {transposed.c}, u, /*retain_graph=*/true)[0];
  }

  const Model& model_;
  Batch batch_;
  const at::Tensor x_, y_;
  int64_t n_ = 0;
  at::Tensor weights_, ridge_, packed_;  // without a graph
  std::optional<double> value_;          // set with state_ and losses_ by a first pass
  at::Tensor state_, losses_, residual_;
  at::Tensor x_leaf_, weights_graph_, ridge_graph_;
  TransposedProduct weights_vjp_, ridge_vjp_;
};

namespace {

const LinearForm* inner_form(const Problem& problem) {
  return problem.has_optimality_map() ? nullptr : problem.inner_linear_form();
}

bool fits(const LinearForm* form) {
  return form && form->features.defined() && form->features.is_cpu() && form->features.layout() == at::kStrided &&
         (form->features.scalar_type() == at::kFloat || form->features.scalar_type() == at::kDouble);
}

}  // namespace

bool NativeOracle::takes(const Problem& problem) { return fits(inner_form(problem)) || fits(problem.outer_linear_form()); }

NativeOracle::NativeOracle(const Problem& problem) : Oracle(problem), autodiff_(problem) {
  require(takes(problem),
          "NativeOracle: the problem offers no linear form that is dense and on the CPU; use the autodiff oracle.");
  if (fits(inner_form(problem))) inner_ = std::make_unique<Model>(*inner_form(problem), problem, "inner");
  if (fits(problem.outer_linear_form())) outer_ = std::make_unique<Model>(*problem.outer_linear_form(), problem, "outer");
}

NativeOracle::~NativeOracle() = default;

std::unique_ptr<Linearization> NativeOracle::linearize_inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  if (!inner_) return autodiff_.linearize_inner(x, y, batch);
  check_point(problem(), x, y, "NativeOracle::linearize_inner");
  return std::make_unique<AtPoint>(*inner_, x, y, batch, "NativeOracle::linearize_inner");
}

Gradients NativeOracle::inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  if (!inner_) return autodiff_.inner(x, y, batch);
  AtPoint point(*inner_, x, y, batch, "NativeOracle::inner");
  const at::Tensor r = point.residual();
  return {point.value(), r, {}};
}

Gradients NativeOracle::outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  if (!outer_) return autodiff_.outer(x, y, batch);
  check_point(problem(), x, y, "NativeOracle::outer");
  AtPoint point(*outer_, x, y, batch, "NativeOracle::outer");
  const at::Tensor r = point.residual();
  return {point.value(), r, point.grad_x()};
}

at::Tensor NativeOracle::inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  if (!inner_) return autodiff_.inner_grad_x(x, y, batch);
  return AtPoint(*inner_, x, y, batch, "NativeOracle::inner_grad_x").grad_x();
}

at::Tensor NativeOracle::inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  if (!inner_) return autodiff_.inner_value(x, y, batch);
  return AtPoint(*inner_, x, y, batch, "NativeOracle::inner_value").value();
}

at::Tensor NativeOracle::outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  if (!outer_) return autodiff_.outer_value(x, y, batch);
  return AtPoint(*outer_, x, y, batch, "NativeOracle::outer_value").value();
}

}  // namespace bilevel
