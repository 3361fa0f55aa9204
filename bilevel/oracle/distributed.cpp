// With n_p of the n samples of a batch in process p:   g = Σ_p (n_p / n) g_p,   and so all its derivatives.
#include "bilevel/oracle/distributed.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "bilevel/core/error.h"
#include "bilevel/oracle/output_space.h"
#include "bilevel/problem/likelihood.h"

namespace bilevel {
namespace {

using Pieces = std::vector<at::Tensor>;

/// Which entries of x are brought together.
enum class Entries {
  kAll,         // whoever has computed them
  kOfBatch,     // those of single samples too, but of the batch alone: the others are zero in all processes
  kOfNoSample,  // but those of single samples
};

struct Share {
  Batch batch;        // the own samples of one
  double weight = 1;  // their part of it
};

}  // namespace

class DistributedOracle::Shares {
 public:
  Shares(const Problem& problem, std::shared_ptr<const Processes> processes)
      : processes_(std::move(processes)), problem_(problem) {
    const bool map = problem.has_optimality_map();  // no mean over samples
    inner_ = slice(map ? 0 : problem.inner_samples());
    outer_ = slice(problem.outer_samples());
    require(inner_.n > 0 || outer_.n > 0,
            "DistributedOracle: neither loss of this problem takes batches, so there are no samples to share; run it in one "
            "process.");
    const std::vector<std::string> own = map ? std::vector<std::string>{} : problem.outer_parts_of_samples();
    for (const Part& part : problem.outer_layout().parts()) {
      if (std::find(own.begin(), own.end(), part.name) == own.end()) {
        common_.push_back(part);
        continue;
      }
      require(inner_.n > 0 && !part.shape.empty() && part.shape.front() == inner_.n,
              fmt::format("DistributedOracle: the part \"{}\" of x should have one entry for each of the {} inner samples, and "
                          "its shape is [{}].",
                          part.name, inner_.n, fmt::join(part.shape, ", ")));
      of_samples_.push_back(part);
    }
  }

  Share inner(const Batch& batch) const { return share(batch, inner_); }
  Share outer(const Batch& batch) const { return share(batch, outer_); }
  const Processes& processes() const { return *processes_; }
  const Problem& problem() const { return problem_; }

  void sum(const Pieces& pieces) const { processes_->sum(pieces); }

  /// The same, and x_bar [dx] or [k, dx] in place.
  void sum(Pieces pieces, const at::Tensor& x_bar, Entries which, const Batch& batch = {}) const {
    for (const Part& part : common_) pieces.push_back(x_bar.narrow(-1, part.offset, part.size));
    const bool some = which == Entries::kOfBatch && !batch.full();
    Pieces gathered;
    if (which != Entries::kOfNoSample) {
      for (const Part& part : of_samples_) {
        if (some) gathered.push_back(rows(x_bar, part).index_select(-2, batch.samples));
        pieces.push_back(some ? gathered.back() : x_bar.narrow(-1, part.offset, part.size));
      }
    }
    processes_->sum(pieces);
    for (size_t i = 0; i < gathered.size(); ++i) rows(x_bar, of_samples_[i]).index_copy_(-2, batch.samples, gathered[i]);
  }

  /// Value and gradients of f. Its ∂x seldom touches entries of single inner samples; where it does, they go in a second
  /// exchange.
  void sum_outer(const at::Tensor& value, const at::Tensor& f_y, const at::Tensor& f_x) const {
    if (!have_samples_entries()) return sum({value, f_y}, f_x, Entries::kOfNoSample);
    at::Tensor touched = at::zeros({1}, f_x.options());
    for (const Part& part : of_samples_) touched = touched + f_x.narrow(-1, part.offset, part.size).ne(0).any();
    sum({value, f_y, touched}, f_x, Entries::kOfNoSample);
    if (touched.item<double>() > 0) sum_entries_of_samples(f_x);
  }

  at::Tensor whole(const at::Tensor& x_bar) const {
    if (!have_samples_entries()) return x_bar;
    const at::Tensor sum = x_bar.detach().clone();
    for (const Part& part : of_samples_) {
      rows(sum, part).narrow(-2, 0, inner_.first).zero_();
      rows(sum, part).narrow(-2, inner_.end, inner_.n - inner_.end).zero_();
    }
    sum_entries_of_samples(sum);
    return sum;
  }

 private:
  bool have_samples_entries() const { return !of_samples_.empty() && processes_->size() > 1; }
  void sum_entries_of_samples(const at::Tensor& x_bar) const {
    Pieces pieces;
    for (const Part& part : of_samples_) pieces.push_back(x_bar.narrow(-1, part.offset, part.size));
    processes_->sum(pieces);
  }

  struct Slice {
    int64_t n = 0, first = 0, end = 0;  // of n samples those from `first` to before `end`
    at::Tensor own;                     // their numbers
  };

  Slice slice(int64_t n) const {
    Slice out{n, n * processes_->rank() / processes_->size(), n * (processes_->rank() + 1) / processes_->size(), {}};
    out.own = at::arange(out.first, out.end, problem_.initial_outer().options().dtype(at::kLong));
    return out;
  }

  Share share(const Batch& batch, const Slice& slice) const {
    if (processes_->size() == 1) return {batch, 1.0};
    if (slice.n == 0) return {batch, 1.0 / static_cast<double>(processes_->size())};
    Share out{batch, 1.0};
    out.batch.seed += static_cast<uint64_t>(processes_->rank());
    out.batch.samples = slice.own;
    int64_t n = slice.n;
    if (!batch.full()) {
      const at::Tensor& all = batch.samples;
      require(all.dim() == 1 && all.scalar_type() == at::kLong && all.size(0) > 0 && all.min().item<int64_t>() >= 0 &&
                  all.max().item<int64_t>() < slice.n,
              fmt::format("DistributedOracle: a batch should hold the numbers of its samples, int64 [B], from 0 to {}.",
                          slice.n - 1));
      out.batch.samples = all.masked_select(all.ge(slice.first).logical_and_(all.lt(slice.end)));
      n = all.size(0);
    }
    out.weight = static_cast<double>(out.batch.samples.size(0)) / static_cast<double>(n);
    return out;
  }

  // A part of x, row by row for the samples: [(k,) n, size / n].
  at::Tensor rows(const at::Tensor& x_bar, const Part& part) const {
    return x_bar.narrow(-1, part.offset, part.size).unflatten(-1, {inner_.n, part.size / inner_.n});
  }

  const std::shared_ptr<const Processes> processes_;
  const Problem& problem_;
  Slice inner_, outer_;
  std::vector<Part> common_, of_samples_;
};

namespace {

using Shares = DistributedOracle::Shares;

// weight · of(), in memory of its own that can be summed up in place; zeros where there are no samples.
template <class F>
at::Tensor weighted(const Share& share, const F& of, at::IntArrayRef shape, const at::Tensor& like) {
  const at::NoGradGuard no_grad;
  return share.weight == 0 ? at::zeros(shape, like.options()) : (share.weight * of()).contiguous();
}

at::Tensor weighted(const Share& share, const at::Tensor& t, at::IntArrayRef shape, const at::Tensor& like) {
  return weighted(
      share, [&] { return t; }, shape, like);
}

class SharedLinearization final : public Linearization {
 public:
  /// `own`: null where the share is empty.
  SharedLinearization(std::shared_ptr<const Shares> shares, Share share, std::unique_ptr<Linearization> own, Batch batch,
                      const at::Tensor& x, const at::Tensor& y)
      : shares_(std::move(shares)), share_(std::move(share)), own_(std::move(own)), batch_(std::move(batch)), like_(y) {
    dx_ = x.size(0);
    dy_ = y.size(0);
  }

  at::Tensor value() override { return at_point().value; }
  at::Tensor residual() override { return at_point().y; }
  at::Tensor grad_x() override {
    at::Tensor x_bar = weighted(
        share_, [&] { return own_->grad_x(); }, {dx_}, like_);
    shares_->sum({}, x_bar, Entries::kOfBatch, batch_);
    return x_bar;
  }
  at::Tensor jvp_y(const at::Tensor& v) override {
    return summed(weighted(
        share_, [&] { return own_->jvp_y(v); }, v.sizes(), like_));
  }
  Vjp vjp(const at::Tensor& w) override { return vjp(w, Entries::kOfBatch); }
  Vjp vjp_share(const at::Tensor& w) override { return vjp(w, Entries::kOfNoSample); }
  at::Tensor jvp_x(const at::Tensor& u) override {
    return summed(weighted(
        share_, [&] { return own_->jvp_x(u); }, shape(u, dy_), like_));
  }
  at::Tensor gauss_newton(const at::Tensor& v) override {
    require(shares_->problem().has_outputs(), "DistributedOracle: gauss_newton needs a problem that offers outputs.");
    return summed(weighted(
        share_, [&] { return own_->gauss_newton(v); }, v.sizes(), like_));
  }
  bool symmetric() const override {
    return !shares_->problem().has_optimality_map() || shares_->problem().optimality_map_is_symmetric();
  }

 private:
  static std::vector<int64_t> shape(const at::Tensor& direction, int64_t size) {
    return direction.dim() == 2 ? std::vector<int64_t>{direction.size(0), size} : std::vector<int64_t>{size};
  }

  at::Tensor summed(at::Tensor t) const {
    shares_->sum({t});
    return t;
  }

  const Gradients& at_point() {
    if (point_.y.defined()) return point_;
    point_.value = weighted(
        share_, [&] { return own_->value(); }, {}, like_);
    point_.y = weighted(
        share_, [&] { return own_->residual(); }, {dy_}, like_);
    shares_->sum({point_.value, point_.y});
    return point_;
  }

  Vjp vjp(const at::Tensor& w, Entries entries) const {
    Vjp own;
    if (own_) own = entries == Entries::kOfNoSample ? own_->vjp_share(w) : own_->vjp(w);
    const Vjp both{weighted(share_, own.y, w.sizes(), like_), weighted(share_, own.x, shape(w, dx_), like_)};
    shares_->sum({both.y}, both.x, entries, batch_);
    return both;
  }

  const std::shared_ptr<const Shares> shares_;
  const Share share_;
  const std::unique_ptr<Linearization> own_;
  const Batch batch_;
  const at::Tensor like_;
  int64_t dx_ = 0, dy_ = 0;
  Gradients point_;  // value and residual, once they have been asked for
};

class SharedOutputSpace final : public OutputSpace {
 public:
  SharedOutputSpace(std::shared_ptr<const Shares> shares, std::unique_ptr<OutputSpace> own, Batch inner)
      : shares_(std::move(shares)), own_(std::move(own)), inner_(std::move(inner)) {}

  Gradients adjoint_loss(const at::Tensor& w) override {
    const Gradients own = own_->adjoint_loss(w);
    shares_->sum({own.value, own.y});
    return own;
  }
  at::Tensor cross(const at::Tensor& w) override { return summed_x(own_->cross(w)); }
  Quadratic head() override {
    const Quadratic own = own_->head();
    const Quadratic sum{own.matrix.contiguous(), own.linear.contiguous()};
    shares_->sum({sum.matrix, sum.linear});
    return sum;
  }
  at::Tensor head_cross(const at::Tensor& v) override { return summed_x(own_->head_cross(v)); }
  at::Tensor compare(const at::Tensor& w, const at::Tensor& v) override {
    const at::Tensor own = own_->compare(w, v);
    shares_->sum({own});
    return own;
  }

 private:
  at::Tensor summed_x(at::Tensor x_bar) const {
    shares_->sum({}, x_bar, Entries::kOfBatch, inner_);
    return x_bar;
  }

  const std::shared_ptr<const Shares> shares_;
  const std::unique_ptr<OutputSpace> own_;
  const Batch inner_;
};

/// Sums up in the caller's tensors what the oracle's own pass has written there.
class SharedJointPass final : public JointPass {
 public:
  SharedJointPass(std::shared_ptr<const Shares> shares, std::unique_ptr<JointPass> own)
      : shares_(std::move(shares)), own_(std::move(own)) {}

  double inner(const at::Tensor& x, const at::Tensor& y, const at::Tensor& v, const Batch& batch, const at::Tensor& r,
               const at::Tensor& Hv, const at::Tensor& cross) override {
    const Share share = shares_->inner(batch);
    const at::Tensor g =
        take(share, r.options(), {r, Hv, cross}, [&] { return own_->inner(x, y, v, share.batch, r, Hv, cross); });
    shares_->sum({g, r, Hv}, cross, Entries::kOfBatch, batch);
    return g.item<double>();
  }

  double outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch, const at::Tensor& f_y,
               const at::Tensor& f_x) override {
    const Share share = shares_->outer(batch);
    const at::Tensor f = take(share, f_y.options(), {f_y, f_x}, [&] { return own_->outer(x, y, share.batch, f_y, f_x); });
    shares_->sum_outer(f, f_y, f_x);
    return f.item<double>();
  }

 private:
  template <class F>
  static at::Tensor take(const Share& share, const at::TensorOptions& options, const Pieces& into, const F& pass) {
    const at::NoGradGuard no_grad;
    if (share.weight == 0) {
      for (const at::Tensor& t : into) t.zero_();
      return at::zeros({}, options);
    }
    const double value = pass();
    for (const at::Tensor& t : into) t.mul_(share.weight);
    return at::full({}, share.weight * value, options);
  }

  const std::shared_ptr<const Shares> shares_;
  const std::unique_ptr<JointPass> own_;
};

}  // namespace

DistributedOracle::DistributedOracle(const Oracle& oracle, std::shared_ptr<const Processes> processes)
    : Oracle(oracle.problem()),
      oracle_(oracle),
      shares_(std::make_shared<const Shares>(oracle.problem(), std::move(processes))) {}

DistributedOracle::~DistributedOracle() = default;

std::unique_ptr<Linearization> DistributedOracle::linearize_inner(const at::Tensor& x, const at::Tensor& y,
                                                                  const Batch& batch) const {
  const Share share = shares_->inner(batch);
  std::unique_ptr<Linearization> own = share.weight == 0 ? nullptr : oracle_.linearize_inner(x, y, share.batch);
  return std::make_unique<SharedLinearization>(shares_, share, std::move(own), batch, x.detach(), y.detach());
}

Gradients DistributedOracle::inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const Share share = shares_->inner(batch);
  Gradients g;
  if (share.weight != 0) g = oracle_.inner(x, y, share.batch);
  g.value = weighted(share, g.value, {}, y);
  g.y = weighted(share, g.y, y.sizes(), y);
  shares_->sum({g.value, g.y});
  return g;
}

Gradients DistributedOracle::outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const Share share = shares_->outer(batch);
  Gradients f;
  if (share.weight != 0) f = oracle_.outer(x, y, share.batch);
  f.value = weighted(share, f.value, {}, y);
  f.y = weighted(share, f.y, y.sizes(), y);
  f.x = weighted(share, f.x, x.sizes(), x);
  shares_->sum_outer(f.value, f.y, f.x);
  return f;
}

at::Tensor DistributedOracle::inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const Share share = shares_->inner(batch);
  const at::Tensor x_bar = weighted(
      share, [&] { return oracle_.inner_grad_x(x, y, share.batch); }, x.sizes(), x);
  shares_->sum({}, x_bar, Entries::kOfBatch, batch);
  return x_bar;
}

at::Tensor DistributedOracle::inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const Share share = shares_->inner(batch);
  const at::Tensor g = weighted(
      share, [&] { return oracle_.inner_value(x, y, share.batch); }, {}, y);
  shares_->sum({g});
  return g;
}

at::Tensor DistributedOracle::outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  const Share share = shares_->outer(batch);
  const at::Tensor f = weighted(
      share, [&] { return oracle_.outer_value(x, y, share.batch); }, {}, y);
  shares_->sum({f});
  return f;
}

std::unique_ptr<OutputSpace> DistributedOracle::output_space(const at::Tensor& x, const at::Tensor& y,
                                                             const OutputSamples& samples) const {
  const Share inner = shares_->inner(samples.inner), outer = shares_->outer(samples.outer);
  const OutputSamples own{inner.batch, outer.batch, samples.inner_weight * inner.weight, samples.outer_weight * outer.weight};
  return std::make_unique<SharedOutputSpace>(shares_, oracle_.output_space(x, y, own), samples.inner);
}

at::Tensor DistributedOracle::scores(const at::Tensor& x, const at::Tensor& y, const Batch& batch, Labels labels) const {
  const at::NoGradGuard no_grad;
  Share share = shares_->inner(batch);
  share.batch.seed = batch.seed;  // a sample's label is drawn alike whoever has the sample
  const Likelihood likelihood = problem().inner_likelihood(x, batch);
  const at::Tensor all = at::zeros({likelihood.weights.size(0), labels_of_each(likelihood, labels), y.size(0)}, y.options());
  if (share.weight != 0) {
    const at::Tensor numbers = batch.full() ? at::arange(all.size(0), at::kLong) : batch.samples;
    // 1/B stands in the weights, of a share as of the batch.
    all.index_copy_(0, at::isin(numbers, share.batch.samples.defined() ? share.batch.samples : numbers).nonzero().squeeze(1),
                    std::sqrt(share.weight) * oracle_.scores(x, y, share.batch, labels));
  }
  shares_->sum({all});
  return all;
}

std::unique_ptr<JointPass> DistributedOracle::joint_pass() const {
  return std::make_unique<SharedJointPass>(shares_, oracle_.joint_pass());
}

at::Tensor DistributedOracle::whole(const at::Tensor& x_bar) const { return shares_->whole(x_bar); }

int64_t DistributedOracle::greatest(int64_t metered) const {
  return static_cast<int64_t>(shares_->processes().greatest(static_cast<double>(metered)));
}

}  // namespace bilevel
