// With the graph of ∂z g kept, over leaves z, x and y (where g depends on y beside z), one backward pass along a gives
//
//   ∂zz g a,   ∂x⟨∂z g, a⟩
//
// without a way through the network. The matrix of the head, rows and columns (c, i) with i the feature, the last one 1 for b, is
//
//   M[(c,i),(c',j)] = Σ_s φ_is C_s[c,c'] φ_js + ∂²g/∂y_ci∂y_c'j |z,   C_s = ∂zz g of sample s, [C, C]
#include "bilevel/oracle/output_space.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <optional>

#include "bilevel/core/error.h"
#include "bilevel/core/guards.h"
#include "bilevel/oracle/autograd.h"

namespace bilevel {
namespace {

template <class F>
auto seeded(const Problem& problem, const Batch& batch, const F& of) {
  std::optional<SeedGuard> guard;
  if (problem.draws_random_numbers()) guard.emplace(batch.seed);
  return of();
}

at::Tensor by_class(const at::Tensor& z) { return z.dim() == 1 ? z.unsqueeze(0) : z; }  // [C, n]

class AutodiffOutputSpace final : public OutputSpace {
 public:
  AutodiffOutputSpace(const Problem& problem, const at::Tensor& x, const at::Tensor& y, OutputSamples samples)
      : problem_(problem), samples_(std::move(samples)), x_(leaf(x)), y_(y.detach()) {
    const at::AutoGradMode grad_mode(true);
    if (inner()) {
      z_ = leaf(inner_outputs(y_));
      y_beside_ = leaf(y_);
      const at::Tensor g =
          seeded(problem_, samples_.inner, [&] { return problem_.inner_loss_of_outputs(x_, y_beside_, z_, samples_.inner); });
      const auto first = gradients(samples_.inner_weight * g, {z_, y_beside_}, {}, /*retain_graph=*/true, /*create_graph=*/true);
      g_z_ = first[0], g_y_ = first[1];
    }
    if (outer()) {
      const at::Tensor z = leaf(outer_outputs(y_)), beside = leaf(y_);
      const at::Tensor f =
          seeded(problem_, samples_.outer, [&] { return problem_.outer_loss_of_outputs(x.detach(), beside, z, samples_.outer); });
      const auto first = gradients(samples_.outer_weight * f, {z, beside});
      f_z_ = first[0], f_y_ = first[1];
    }
  }

  Gradients adjoint_loss(const at::Tensor& w) override {
    const at::AutoGradMode grad_mode(true);
    const at::Tensor weights = leaf(w);
    at::Tensor value = at::zeros({}, y_.options()), along = value;
    if (inner()) {
      const at::Tensor a = inner_outputs(weights), curved = curvature(a.detach());
      value = value + 0.5 * (a.detach() * curved).sum();
      along = along + (a * curved).sum();
    }
    if (outer()) {
      const at::Tensor slope = (outer_outputs(weights) * f_z_).sum();
      value = value + slope.detach();
      along = along + slope;
    }
    return {value, gradients(along, {weights})[0], {}};
  }

  at::Tensor cross(const at::Tensor& w) override {
    if (!inner()) return at::zeros_like(x_, x_.options().requires_grad(false));
    const at::Tensor a = without_graph([&] { return inner_outputs(w); });
    return gradients(g_z_, {x_}, a, /*retain_graph=*/true)[0];
  }

  Quadratic head() override {
    positions();
    const int64_t size = positions_.size(0);
    Quadratic out{at::zeros({size, size}, y_.options()), at::zeros({size}, y_.options())};
    if (inner()) {
      out.matrix = gram();
      if (g_y_.requires_grad()) out.matrix = out.matrix + curvature_beside();
    }
    if (outer()) {
      const at::Tensor phi = extended(without_graph(
          [&] { return seeded(problem_, samples_.outer, [&] { return problem_.outer_features(y_, samples_.outer); }); }));
      out.linear = by_class(f_z_).mm(phi.t()).flatten().index_select(0, order_) + f_y_.index_select(0, positions_);
    }
    return out;
  }

  at::Tensor head_cross(const at::Tensor& v) override {
    if (!inner()) return at::zeros_like(x_, x_.options().requires_grad(false));
    at::Tensor sum = gradients(g_z_, {x_}, of_head(v), /*retain_graph=*/true)[0];
    if (g_y_.requires_grad()) {
      const at::Tensor beside = at::zeros_like(y_).index_copy_(0, positions_, v.detach());
      sum = sum + gradients(g_y_, {x_}, beside, /*retain_graph=*/true)[0];
    }
    return sum;
  }

  at::Tensor compare(const at::Tensor& w, const at::Tensor& v) override {
    if (!inner()) return at::zeros({3}, y_.options());
    const at::Tensor a = without_graph([&] { return inner_outputs(w); }), c = of_head(v);
    return at::stack({(a * a).sum(), (a * c).sum(), (c * c).sum()});
  }

 private:
  bool inner() const { return samples_.inner_weight != 0; }
  bool outer() const { return samples_.outer_weight != 0; }
  template <class F>
  static at::Tensor without_graph(const F& of) {
    const at::NoGradGuard no_grad;
    return of();
  }
  at::Tensor inner_outputs(const at::Tensor& w) const {
    return seeded(problem_, samples_.inner, [&] { return problem_.inner_outputs(w, samples_.inner); });
  }
  at::Tensor outer_outputs(const at::Tensor& w) const {
    return seeded(problem_, samples_.outer, [&] { return problem_.outer_outputs(w, samples_.outer); });
  }
  at::Tensor curvature(const at::Tensor& a) const { return gradients(g_z_, {z_}, a, /*retain_graph=*/true)[0]; }

  // Where y has the head, and where (c, i) of the head stand in that order.
  void positions() {
    if (positions_.defined()) return;
    positions_ = output_layer_positions(problem_).to(y_.device());
    const auto layer = problem_.output_layer();
    const Part& W = problem_.inner_layout().part(layer->weight);
    classes_ = W.shape.size() < 2 ? 1 : W.shape.front();
    biased_ = !layer->bias.empty();
    const at::Tensor all = at::arange(positions_.size(0), positions_.options()).view({classes_, -1});
    const int64_t features = W.size / classes_;
    order_ = all.narrow(1, 0, features).reshape({-1});
    if (biased_) order_ = at::cat({order_, all.select(1, features)});
  }

  at::Tensor extended(const at::Tensor& phi) const {
    return biased_ ? at::cat({phi, at::ones({1, phi.size(1)}, phi.options())}) : phi;
  }

  const at::Tensor& features() {
    positions();
    if (!features_.defined()) {
      features_ = extended(without_graph(
          [&] { return seeded(problem_, samples_.inner, [&] { return problem_.inner_features(y_, samples_.inner); }); }));
      require(
          features_.dim() == 2 && features_.size(0) * classes_ == positions_.size(0) && features_.size(1) == by_class(z_).size(1),
          fmt::format(
              "Problem::inner_features: expected [{}, {}], a column for each sample, got [{}] (with the row of ones of a bias).",
              positions_.size(0) / classes_, by_class(z_).size(1), fmt::join(features_.sizes(), ", ")));
    }
    return features_;
  }

  // W φ + b in the shape of z.
  at::Tensor of_head(const at::Tensor& v) {
    const at::Tensor& phi = features();
    const at::Tensor W = at::empty_like(v).index_copy_(0, order_, v.detach()).view({classes_, -1});
    return W.mm(phi).view_as(z_);
  }

  at::Tensor gram() {
    const at::Tensor& phi = features();
    std::vector<at::Tensor> rows;
    for (int64_t c = 0; c < classes_; ++c) {
      const at::Tensor unit = at::zeros_like(z_, z_.options().requires_grad(false));
      by_class(unit).select(0, c).fill_(1);
      const at::Tensor curved = by_class(curvature(unit));  // C_s[c, ·], [C, n]
      std::vector<at::Tensor> blocks;
      for (int64_t other = 0; other < classes_; ++other) blocks.push_back((phi * curved[other]).mm(phi.t()));
      rows.push_back(at::cat(blocks, 1));
    }
    return at::cat(rows).index_select(0, order_).index_select(1, order_);
  }

  // ∂²g|z by W and b.
  at::Tensor curvature_beside() const {
    std::vector<at::Tensor> rows;
    for (int64_t i = 0; i < positions_.size(0); ++i) {
      const at::Tensor unit = at::zeros_like(y_);
      unit.index_fill_(0, positions_.narrow(0, i, 1), 1);
      rows.push_back(gradients(g_y_, {y_beside_}, unit, /*retain_graph=*/true)[0].index_select(0, positions_));
    }
    return at::stack(rows);
  }

  const Problem& problem_;
  const OutputSamples samples_;
  const at::Tensor x_, y_;
  at::Tensor z_, y_beside_, g_z_, g_y_;  // leaves, and first derivatives with their graph
  at::Tensor f_z_, f_y_;
  at::Tensor positions_, order_, features_;
  int64_t classes_ = 0;
  bool biased_ = false;
};

template <class F>
at::Tensor sum_of(const std::vector<SumOfOutputSpaces::Maker>& makers, const F& of) {
  at::Tensor sum;
  for (const auto& make : makers) {
    const at::Tensor one = of(*make());
    sum = sum.defined() ? sum + one : one;
  }
  return sum;
}

}  // namespace

Gradients SumOfOutputSpaces::adjoint_loss(const at::Tensor& w) {
  Gradients sum;
  for (const Maker& make : makers_) {
    const Gradients one = make()->adjoint_loss(w);
    sum = sum.y.defined() ? Gradients{sum.value + one.value, sum.y + one.y, {}} : one;
  }
  return sum;
}

at::Tensor SumOfOutputSpaces::cross(const at::Tensor& w) {
  return sum_of(makers_, [&](OutputSpace& one) { return one.cross(w); });
}

OutputSpace::Quadratic SumOfOutputSpaces::head() {
  Quadratic sum;
  for (const Maker& make : makers_) {
    const Quadratic one = make()->head();
    sum = sum.matrix.defined() ? Quadratic{sum.matrix + one.matrix, sum.linear + one.linear} : one;
  }
  return sum;
}

at::Tensor SumOfOutputSpaces::head_cross(const at::Tensor& v) {
  return sum_of(makers_, [&](OutputSpace& one) { return one.head_cross(v); });
}

at::Tensor SumOfOutputSpaces::compare(const at::Tensor& w, const at::Tensor& v) {
  return sum_of(makers_, [&](OutputSpace& one) { return one.compare(w, v); });
}

std::unique_ptr<OutputSpace> autodiff_output_space(const Problem& problem, const at::Tensor& x, const at::Tensor& y,
                                                   const OutputSamples& samples) {
  check_point(problem, x, y, "Oracle::output_space");
  require(problem.has_outputs() && problem.has_outer_outputs() && !problem.has_optimality_map(),
          "Oracle::output_space: function-space methods need a problem with losses of its outputs on the inner and on the outer "
          "samples "
          "(Problem::has_outputs, Problem::has_outer_outputs).");
  return std::make_unique<AutodiffOutputSpace>(problem, x, y, samples);
}

}  // namespace bilevel
