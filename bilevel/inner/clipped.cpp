#include "bilevel/inner/clipped.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "bilevel/core/error.h"

// c(g) = s g,  s = min(1, κ/(n + ε)),  n = ‖g‖,  ε = 1e-6.  Where s < 1 its Jacobian is symmetric:
//
//   c'(g) v = s v − κ/(n + ε)² ⟨g, v⟩/n · g

namespace bilevel {
namespace {

constexpr double kEps = 1e-6;  // PyTorch's

at::Tensor clipped(const at::Tensor& g, double kappa) { return g * (kappa / (g.norm() + kEps)).clamp_max(1.0); }

// v may be a block.
at::Tensor derivative(const at::Tensor& g, double kappa, const at::Tensor& v) {
  const at::Tensor n = g.norm(), s = kappa / (n + kEps), gv = v.dim() == 1 ? g.dot(v) : v.mv(g).unsqueeze(1);
  const at::Tensor along = at::where(s < 1, s / (n + kEps) * gv / n, at::zeros_like(n));
  return s.clamp_max(1.0) * v - along * g;
}

RuleInput with_gradient(RuleInput in, at::Tensor gradient) {
  in.gradient = std::move(gradient);
  return in;
}

}  // namespace

ClippedRule::ClippedRule(std::unique_ptr<UpdateRule> rule, double max_norm) : rule_(std::move(rule)), max_norm_(max_norm) {
  require(rule_ != nullptr, "ClippedRule: rule is null.");
  require(max_norm_ > 0 && std::isfinite(max_norm_),
          fmt::format("ClippedRule: clip_norm = {} must be positive and finite.", max_norm_));
}

RuleOutput ClippedRule::step(const RuleInput& in) const {
  return rule_->step(with_gradient(in, clipped(in.gradient, max_norm_)));
}

RuleCotangent ClippedRule::vjp(const RuleInput& in, const at::Tensor& y_bar, const Tensors& state_bar) const {
  const at::NoGradGuard no_grad;
  RuleCotangent bar = rule_->vjp(with_gradient(in, clipped(in.gradient, max_norm_)), y_bar, state_bar);
  bar.gradient = derivative(in.gradient, max_norm_, bar.gradient);
  return bar;
}

RuleOutput ClippedRule::jvp(const RuleInput& in, const RuleCotangent& tangent) const {
  const at::NoGradGuard no_grad;
  RuleCotangent inner = tangent;
  inner.gradient = derivative(in.gradient, max_norm_, tangent.gradient);
  return rule_->jvp(with_gradient(in, clipped(in.gradient, max_norm_)), inner);
}

at::Tensor ClippedRule::residual(const at::Tensor& y, const at::Tensor& gradient, const Tensors& h) const {
  const at::Tensor r = rule_->residual(y, gradient, h);
  return r.is_same(gradient) ? r : rule_->residual(y, clipped(gradient, max_norm_), h);
}

}  // namespace bilevel
