// Central differences of the first-order oracle, all along one direction:
//
//   H v        ≈ [∂y g(x, y + εv) − ∂y g(x, y − εv)] / 2ε
//   (∂x r)ᵀ w  ≈ [∂x g(x, y + εw) − ∂x g(x, y − εw)] / 2ε
//   ∂x r · u   ≈ [∂y g(x + εu, y) − ∂y g(x − εu, y)] / 2ε
#include "bilevel/oracle/finite_difference.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>

#include "bilevel/core/error.h"
#include "bilevel/oracle/output_space.h"

namespace bilevel {
namespace {

template <class F>
at::Tensor central_difference(const at::Tensor& point, const at::Tensor& direction, int64_t result_size, F gradient) {
  if (direction.dim() == 2) {
    std::vector<at::Tensor> rows;
    for (int64_t i = 0; i < direction.size(0); ++i)
      rows.push_back(central_difference(point, direction[i], result_size, gradient));
    return at::stack(rows);
  }
  const double step = difference_step(point, direction);
  if (step == 0) return at::zeros({result_size}, point.options());
  return (gradient(point + step * direction) - gradient(point - step * direction)) / (2 * step);
}

class DifferenceLinearization final : public Linearization {
 public:
  DifferenceLinearization(const Oracle& oracle, at::Tensor x, at::Tensor y, Batch batch)
      : oracle_(oracle), x_(x.detach()), y_(y.detach()), batch_(std::move(batch)), at_y_(oracle.inner(x_, y_, batch_)) {}

  at::Tensor value() override { return at_y_.value; }
  at::Tensor residual() override { return at_y_.y; }
  at::Tensor grad_x() override { return oracle_.inner_grad_x(x_, y_, batch_); }

  at::Tensor jvp_y(const at::Tensor& v) override {
    return central_difference(y_, v, y_.size(0), [&](const at::Tensor& y) { return oracle_.inner(x_, y, batch_).y; });
  }
  Vjp vjp(const at::Tensor& w) override {
    if (oracle_.problem().has_optimality_map()) {
      throw Error(
          "FiniteDifferenceOracle: differences of an optimality map give ∂y r · v and ∂x r · u, but no product with a transpose; "
          "use the autodiff oracle.");
    }
    return {jvp_y(w),
            central_difference(y_, w, x_.size(0), [&](const at::Tensor& y) { return oracle_.inner_grad_x(x_, y, batch_); })};
  }
  at::Tensor jvp_x(const at::Tensor& u) override {
    return central_difference(x_, u, y_.size(0), [&](const at::Tensor& x) { return oracle_.inner(x, y_, batch_).y; });
  }
  at::Tensor gauss_newton(const at::Tensor& /*v*/) override {
    throw Error("FiniteDifferenceOracle: Gauss–Newton needs the Jacobian of the outputs; use the autodiff oracle.");
  }
  bool symmetric() const override {
    return !oracle_.problem().has_optimality_map() || oracle_.problem().optimality_map_is_symmetric();
  }

 private:
  const Oracle& oracle_;
  const at::Tensor x_, y_;
  const Batch batch_;
  const Gradients at_y_;
};

}  // namespace

double difference_step(const at::Tensor& point, const at::Tensor& direction) {
  const double norm = direction.norm().item<double>();
  if (!(norm > 0)) return 0;
  const double unit =
      point.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
  return std::cbrt(unit) * (1 + point.norm().item<double>()) / norm;
}

std::unique_ptr<Linearization> FiniteDifferenceOracle::linearize_inner(const at::Tensor& x, const at::Tensor& y,
                                                                       const Batch& batch) const {
  check_point(problem(), x, y, "FiniteDifferenceOracle::linearize_inner");
  return std::make_unique<DifferenceLinearization>(first_order_, x, y, batch);
}

std::unique_ptr<OutputSpace> FiniteDifferenceOracle::output_space(const at::Tensor& x, const at::Tensor& y,
                                                                  const OutputSamples& samples) const {
  return first_order_.output_space(x, y, samples);
}

}  // namespace bilevel
