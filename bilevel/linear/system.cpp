#include "bilevel/linear/system.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <limits>

#include "bilevel/core/error.h"

namespace bilevel {

System::System(const Operator& A, double damping, const at::Tensor& b, const at::Tensor& q0, std::string_view caller)
    : A_(A), damping_(damping) {
  require(static_cast<bool>(A.apply), fmt::format("{}: A.apply is empty; give the product A v.", caller));
  require(b.defined() && b.dim() == 1 && b.size(0) == A.dim && at::isFloatingType(b.scalar_type()),
          fmt::format("{}: b has shape {}, expected a real vector [{}], the dimension of A.", caller,
                      b.defined() ? fmt::format("[{}]", fmt::join(b.sizes(), ", ")) : "undefined", A.dim));
  require(!q0.defined() || (q0.sizes() == b.sizes() && q0.scalar_type() == b.scalar_type() && q0.device() == b.device()),
          fmt::format("{}: q0 differs from b in shape, dtype or device; expected those of b, or an undefined tensor.", caller));
  b_ = b.detach();
  if (b_.numel() == 0) return;
  largest_ = b_.abs().max().item<double>();  // NaN where b holds one
  if (largest_ == 0 || !std::isfinite(largest_)) return;
  b_ = b_ / largest_;
  length_ = at::linalg_vector_norm(b_).item<double>();
  b_ = b_ / length_;
  if (q0.defined()) q0_ = q0.detach() / largest_ / length_;
}

std::optional<LinearResult> System::trivial() const {
  if (length_ > 0) return std::nullopt;
  LinearResult result;
  result.solution = at::zeros_like(b_);
  const bool zero = b_.numel() == 0 || largest_ == 0;
  result.status = zero ? Status::kConverged : Status::kNonFinite;
  result.message = zero ? "The right-hand side is zero." : "The right-hand side is not finite.";
  result.relative_residual = zero ? 0 : std::numeric_limits<double>::infinity();
  return result;
}

double System::epsilon() const {
  return b_.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
}

at::Tensor System::apply(const at::Tensor& v) const {
  const at::Tensor product = A_.apply(v).detach();
  return damping_ == 0 ? product : product.add(v, damping_);
}

at::Tensor System::residual(const at::Tensor& q) const { return b_ - apply(q); }

at::Tensor System::unscaled(const at::Tensor& q) const { return q * length_ * largest_; }

std::vector<double> numbers(std::initializer_list<at::Tensor> scalars) {
  const at::Tensor all = at::stack(at::TensorList(scalars)).to(at::kCPU, at::kDouble).contiguous();
  return {all.const_data_ptr<double>(), all.const_data_ptr<double>() + all.numel()};
}

}  // namespace bilevel
