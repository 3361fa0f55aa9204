#include "bilevel/oracle/oracle.h"

#include <ATen/ATen.h>

#include "bilevel/core/error.h"
#include "bilevel/oracle/output_space.h"

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

  double outer(const at::Tensor& x, const at::Tensor& y, const Batch& batch, const at::Tensor& f_y, const at::Tensor& f_x) override {
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

std::unique_ptr<JointPass> Oracle::joint_pass() const { return std::make_unique<ByLinearization>(*this); }

}  // namespace bilevel
