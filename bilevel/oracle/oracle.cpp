#include "bilevel/oracle/oracle.h"

#include <ATen/ATen.h>

#include <optional>
#include "bilevel/core/error.h"
#include "bilevel/oracle/output_space.h"

#include "bilevel/core/guards.h"
#include "bilevel/oracle/autograd.h"
#include "bilevel/problem/likelihood.h"

namespace bilevel {
namespace {

class ByLinearization final : public JointPass {
 public:
  explicit ByLinearization(const Oracle& oracle) : oracle_(oracle) {}

  double inner(const at::Tensor& x, const at::Tensor& y, const at::Tensor& v, const Batch& batch, const at::Tensor& r,
               const at::Tensor& Hv, const at::Tensor& cross) override {
    const auto lin = oracle_.linearize_inner(x, y, batch);
    const at::NoGradGuard no_grad;
    r.copy_(lin->residual());
    const Vjp products = lin->vjp(v);
    Hv.copy_(products.y);
    cross.copy_(products.x);
    return lin->value().item<double>();
  }

  double outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch, const at::Tensor& f_y,
               const at::Tensor& f_x) override {
    const Gradients f = oracle_.outer(x, y, batch);
    const at::NoGradGuard no_grad;
    f_y.copy_(f.y);
    f_x.copy_(f.x);
    return f.value.item<double>();
  }

 private:
  const Oracle& oracle_;
};

}  // namespace

std::unique_ptr<OutputSpace> Oracle::output_space(const at::Tensor& /*x*/, const at::Tensor& /*y*/,
                                                  const OutputSamples& /*samples*/) const {
  throw Error("Oracle::output_space: this oracle knows no outputs; use the autodiff oracle.");
}

at::Tensor Oracle::scores(const at::Tensor& x, const at::Tensor& y, const Batch& batch, Labels labels) const {
  const at::Tensor samples = batch.full() ? at::arange(problem_.inner_samples(), at::kLong) : batch.samples;
  const Likelihood likelihood = problem_.inner_likelihood(x, batch);
  Batch one = batch;
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < samples.size(0); ++i) {
    one.samples = samples.narrow(0, i, 1);
    Likelihood of_one = likelihood;
    of_one.targets = likelihood.targets.narrow(1, i, 1);
    of_one.weights = likelihood.weights.narrow(0, i, 1);
    const at::AutoGradMode grad_mode(true);
    std::optional<SeedGuard> guard;
    if (problem_.draws_random_numbers()) guard.emplace(batch.seed);
    const at::Tensor y_leaf = leaf(y), z = problem_.likelihood_outputs(x.detach(), y_leaf, one);
    const at::Tensor along = output_scores(of_one, z.detach().reshape({-1, 1}), labels, batch.seed, one.samples);
    for (const at::Tensor& u : along.unbind(0))
      rows.push_back(gradients(z, {y_leaf}, u.reshape(z.sizes()), /*retain_graph=*/true)[0]);
  }
  const int64_t k = labels_of_each(likelihood, labels);
  return rows.empty() ? at::zeros({0, k, y.size(0)}, y.options()) : at::stack(rows).view({-1, k, y.size(0)});
}

std::unique_ptr<JointPass> Oracle::joint_pass() const { return std::make_unique<ByLinearization>(*this); }

}  // namespace bilevel
