#include "bilevel/oracle/counted.h"

#include <ATen/ATen.h>

#include "bilevel/oracle/output_space.h"

namespace bilevel {
namespace {

int64_t directions(const at::Tensor& v) { return v.dim() == 2 ? v.size(0) : 1; }

class CountedLinearization final : public Linearization {
 public:
  CountedLinearization(std::unique_ptr<Linearization> inner, std::shared_ptr<CountedOracle::Meter> meter, int64_t samples)
      : inner_(std::move(inner)), meter_(std::move(meter)), samples_(samples) {}

  at::Tensor value() override { return inner_->value(); }
  at::Tensor residual() override { return inner_->residual(); }
  at::Tensor grad_x() override {
    meter_->add(&Cost::gradients, samples_);
    return inner_->grad_x();
  }
  at::Tensor jvp_y(const at::Tensor& v) override {
    meter_->add(&Cost::hvps, samples_, directions(v));
    return inner_->jvp_y(v);
  }
  Vjp vjp(const at::Tensor& w) override {
    meter_->add(&Cost::hvps, samples_, directions(w));
    meter_->add(&Cost::cross_products, samples_, directions(w));
    return inner_->vjp(w);
  }
  Vjp vjp_share(const at::Tensor& w) override {
    meter_->add(&Cost::hvps, samples_, directions(w));
    meter_->add(&Cost::cross_products, samples_, directions(w));
    return inner_->vjp_share(w);
  }
  at::Tensor jvp_x(const at::Tensor& u) override {
    meter_->add(&Cost::cross_products, samples_, directions(u));
    return inner_->jvp_x(u);
  }
  at::Tensor gauss_newton(const at::Tensor& v) override {
    meter_->add(&Cost::hvps, samples_, directions(v));
    return inner_->gauss_newton(v);
  }
  bool symmetric() const override { return inner_->symmetric(); }

 private:
  const std::unique_ptr<Linearization> inner_;
  const std::shared_ptr<CountedOracle::Meter> meter_;
  const int64_t samples_;
};

class CountedJointPass final : public JointPass {
 public:
  CountedJointPass(std::unique_ptr<JointPass> pass, const Problem& problem, std::shared_ptr<CountedOracle::Meter> meter)
      : pass_(std::move(pass)), problem_(problem), meter_(std::move(meter)) {}

  double inner(const at::Tensor& x, const at::Tensor& y, const at::Tensor& v, const Batch& batch, const at::Tensor& r,
               const at::Tensor& Hv, const at::Tensor& cross) override {
    const int64_t samples = batch.size(problem_.inner_samples());
    meter_->add(&Cost::gradients, samples);
    meter_->add(&Cost::hvps, samples);
    meter_->add(&Cost::cross_products, samples);
    return pass_->inner(x, y, v, batch, r, Hv, cross);
  }
  double outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch, const at::Tensor& f_y,
               const at::Tensor& f_x) override {
    meter_->add(&Cost::gradients, batch.size(problem_.outer_samples()));
    return pass_->outer(x, y, batch, f_y, f_x);
  }

 private:
  const std::unique_ptr<JointPass> pass_;
  const Problem& problem_;
  const std::shared_ptr<CountedOracle::Meter> meter_;
};

class CountedOutputSpace final : public OutputSpace {
 public:
  CountedOutputSpace(std::unique_ptr<OutputSpace> space, int64_t inner, int64_t outer,
                     std::shared_ptr<CountedOracle::Meter> meter)
      : space_(std::move(space)), inner_(inner), outer_(outer), meter_(std::move(meter)) {}

  Gradients adjoint_loss(const at::Tensor& w) override {
    meter_->add(&Cost::gradients, inner_);
    meter_->add(&Cost::gradients, outer_);
    return space_->adjoint_loss(w);
  }
  at::Tensor cross(const at::Tensor& w) override {
    meter_->add(&Cost::forwards, inner_);
    meter_->add(&Cost::cross_products, inner_);
    return space_->cross(w);
  }
  Quadratic head() override {
    meter_->add(&Cost::forwards, inner_);
    meter_->add(&Cost::forwards, outer_);
    return space_->head();
  }
  at::Tensor head_cross(const at::Tensor& v) override {
    meter_->add(&Cost::cross_products, inner_);
    return space_->head_cross(v);
  }
  at::Tensor compare(const at::Tensor& w, const at::Tensor& v) override {
    meter_->add(&Cost::forwards, inner_);
    return space_->compare(w, v);
  }

 private:
  const std::unique_ptr<OutputSpace> space_;
  const int64_t inner_, outer_;  // samples
  const std::shared_ptr<CountedOracle::Meter> meter_;
};

}  // namespace

std::unique_ptr<OutputSpace> CountedOracle::output_space(const at::Tensor& x, const at::Tensor& y,
                                                         const OutputSamples& samples) const {
  const int64_t inner = samples.inner.size(problem().inner_samples()), outer = samples.outer.size(problem().outer_samples());
  meter_->add(&Cost::forwards, inner);
  meter_->add(&Cost::forwards, outer);
  return std::make_unique<CountedOutputSpace>(oracle_.output_space(x, y, samples), inner, outer, meter_);
}

std::unique_ptr<JointPass> CountedOracle::joint_pass() const {
  return std::make_unique<CountedJointPass>(oracle_.joint_pass(), problem(), meter_);
}

at::Tensor CountedOracle::scores(const at::Tensor& x, const at::Tensor& y, const Batch& batch, Labels labels) const {
  meter_->add(&Cost::gradients, batch.size(problem().inner_samples()));
  return oracle_.scores(x, y, batch, labels);
}

std::unique_ptr<Linearization> CountedOracle::linearize_inner(const at::Tensor& x, const at::Tensor& y,
                                                              const Batch& batch) const {
  const int64_t samples = batch.size(problem().inner_samples());
  meter_->add(&Cost::gradients, samples);
  return std::make_unique<CountedLinearization>(oracle_.linearize_inner(x, y, batch), meter_, samples);
}

Gradients CountedOracle::inner(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  meter_->add(&Cost::gradients, batch.size(problem().inner_samples()));
  return oracle_.inner(x, y, batch);
}

Gradients CountedOracle::outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  meter_->add(&Cost::gradients, batch.size(problem().outer_samples()));
  return oracle_.outer(x, y, batch);
}

at::Tensor CountedOracle::inner_grad_x(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  meter_->add(&Cost::gradients, batch.size(problem().inner_samples()));
  return oracle_.inner_grad_x(x, y, batch);
}

at::Tensor CountedOracle::inner_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  meter_->add(&Cost::forwards, batch.size(problem().inner_samples()));
  return oracle_.inner_value(x, y, batch);
}

at::Tensor CountedOracle::outer_value(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  meter_->add(&Cost::forwards, batch.size(problem().outer_samples()));
  return oracle_.outer_value(x, y, batch);
}

CostSince::CostSince(const Oracle& oracle)
    : counted_(dynamic_cast<const CountedOracle*>(&oracle)), before_(counted_ ? counted_->cost() : Cost{}) {}

Cost CostSince::operator()() const {
  Cost cost = counted_ ? counted_->cost() - before_ : Cost{};
  cost.seconds = seconds_since(began_);
  return cost;
}

}  // namespace bilevel
