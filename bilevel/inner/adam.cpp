#include "bilevel/inner/adam.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/inner/rule_helpers.h"

// With G = g + w y (Adam) or G = g (AdamW), t the number of this step from 1, c₁ = 1 − β₁ᵗ and c₂ = √(1 − β₂ᵗ):
//
//   m' = β₁ m + (1 − β₁) G
//   v' = β₂ v + (1 − β₂) G²
//   u  = v', or max(u, v') for AMSGrad
//   d  = m' / (√u / c₂ + ε), 0 where u = 0
//   y' = y − (η/c₁) d          (Adam)        y' = (1 − η w) y − (η/c₁) d          (AdamW)

namespace bilevel {
AdamRuleOptions AdamRuleOptions::adamw() {
  AdamRuleOptions options;
  options.weight_decay = 0.01;
  options.decoupled = true;
  return options;
}

std::vector<std::string> AdamRuleOptions::violations() const {
  return violations_of_moments(lr, beta1, beta2, eps, weight_decay);
}

void read(Section& section, AdamRuleOptions& options) {
  read_betas(section, options.beta1, options.beta2);
  section.read("eps", options.eps);
  section.read("weight_decay", options.weight_decay);
  section.read("amsgrad", options.amsgrad);
  section.check(options.violations());
}

AdamRule::AdamRule(AdamRuleOptions options) : options_(std::move(options)) {
  const auto found = options_.violations();
  require(found.empty(), fmt::format("AdamRule: {}.", fmt::join(found, "; ")));
  check_learned(*this, options_.learned);
}

bool AdamRule::decays() const { return options_.weight_decay != 0 || contains(options_.learned, "weight_decay"); }
bool AdamRule::stops_at_stationarity() const { return !(options_.decoupled && options_.amsgrad && decays()); }

at::Tensor AdamRule::residual(const at::Tensor& y, const at::Tensor& gradient, const Tensors& h) const {
  if (!decays()) return gradient;
  return gradient + h[1] * (options_.decoupled ? (gradient.abs() + options_.eps) * y : y);
}

at::Tensor AdamRule::preconditioner(const Tensors& state, int64_t steps) const {
  const double c2 = std::sqrt(1 - std::pow(options_.beta2, static_cast<double>(std::max<int64_t>(steps, 1))));
  return 1 / (state.back().sqrt() / c2 + options_.eps);
}

struct AdamRule::Parts {
  double c1, c2;
  at::Tensor G, m, v, u;
  at::Tensor newer;  // where v' is the maximum
  at::Tensor live;   // where u > 0
  at::Tensor root;   // √u, 1 where u = 0, so that its derivative is finite there
  at::Tensor denominator, d;
};

AdamRule::Parts AdamRule::parts(const RuleInput& in) const {
  const double t = static_cast<double>(in.step + 1);
  Parts p;
  p.c1 = 1 - std::pow(options_.beta1, t);
  p.c2 = std::sqrt(1 - std::pow(options_.beta2, t));
  const bool coupled = !options_.decoupled && (decays() || in.h[1].requires_grad());
  p.G = coupled ? in.gradient + in.h[1] * in.y : in.gradient;
  p.m = options_.beta1 * in.state[0] + (1 - options_.beta1) * p.G;
  p.v = options_.beta2 * in.state[1] + (1 - options_.beta2) * p.G * p.G;
  p.u = p.v;
  if (options_.amsgrad) {
    p.newer = p.v > in.state[2];
    p.u = at::where(p.newer, p.v, in.state[2]);
  }
  p.live = p.u > 0;
  p.root = at::where(p.live, p.u, at::ones_like(p.u)).sqrt();
  p.denominator = p.root / p.c2 + options_.eps;
  p.d = at::where(p.live, p.m / p.denominator, at::zeros_like(p.m));
  return p;
}

RuleOutput AdamRule::step(const RuleInput& in) const {
  const at::Tensor &lr = in.h[0], &w = in.h[1];
  const Parts p = parts(in);
  const at::Tensor y = options_.decoupled ? (1 - lr * w) * in.y : in.y;
  Tensors state{p.m, p.v};
  if (options_.amsgrad) state.push_back(p.u);
  return {y - lr / p.c1 * p.d, std::move(state)};
}

RuleCotangent AdamRule::vjp(const RuleInput& in, const at::Tensor& y_bar, const Tensors& state_bar) const {
  const at::NoGradGuard no_grad;
  const at::Tensor &lr = in.h[0], &w = in.h[1];
  const Parts p = parts(in);
  const at::Tensor zero = at::zeros_like(in.y);
  const at::Tensor d_bar = at::where(p.live, -lr / p.c1 * y_bar, zero);
  const at::Tensor m_bar = state_bar[0] + d_bar / p.denominator;
  at::Tensor u_bar = -d_bar * p.d / p.denominator / (2 * p.c2 * p.root);
  at::Tensor v_bar = state_bar[1], older_bar;
  if (options_.amsgrad) {
    u_bar = u_bar + state_bar[2];
    v_bar = v_bar + at::where(p.newer, u_bar, zero);
    older_bar = at::where(p.newer, zero, u_bar);
  } else {
    v_bar = v_bar + u_bar;
  }
  RuleCotangent bar;
  bar.gradient = (1 - options_.beta1) * m_bar + 2 * (1 - options_.beta2) * p.G * v_bar;
  bar.state = {options_.beta1 * m_bar, options_.beta2 * v_bar};
  if (options_.amsgrad) bar.state.push_back(older_bar);
  bar.y = options_.decoupled ? (1 - lr * w) * y_bar : decays() ? y_bar + w * bar.gradient : y_bar;
  if (in.h_is_constant) return bar;
  if (options_.decoupled) {
    bar.h = {hyperparameter_bar(lr, -p.d / p.c1 - w * in.y, y_bar), hyperparameter_bar(w, in.y, -lr * y_bar)};
  } else {
    bar.h = {hyperparameter_bar(lr, -p.d / p.c1, y_bar), hyperparameter_bar(w, in.y, bar.gradient)};
  }
  return bar;
}

RuleOutput AdamRule::jvp(const RuleInput& in, const RuleCotangent& tangent) const {
  const at::NoGradGuard no_grad;
  const at::Tensor &lr = in.h[0], &w = in.h[1], &dlr = tangent.h[0], &dw = tangent.h[1];
  const Parts p = parts(in);
  const at::Tensor zero = at::zeros_like(in.y);
  const at::Tensor dG = options_.decoupled ? tangent.gradient : tangent.gradient + w * tangent.y + dw * in.y;
  const at::Tensor dm = options_.beta1 * tangent.state[0] + (1 - options_.beta1) * dG;
  const at::Tensor dv = options_.beta2 * tangent.state[1] + 2 * (1 - options_.beta2) * p.G * dG;
  const at::Tensor du = options_.amsgrad ? at::where(p.newer, dv, tangent.state[2]) : dv;
  const at::Tensor dd = at::where(p.live, (dm - p.d * du / (2 * p.c2 * p.root)) / p.denominator, zero);
  at::Tensor dy = tangent.y;
  if (options_.decoupled) dy = (1 - lr * w) * tangent.y - (dlr * w + lr * dw) * in.y;
  Tensors dstate{dm, dv};
  if (options_.amsgrad) dstate.push_back(du);
  return {dy - dlr / p.c1 * p.d - lr / p.c1 * dd, std::move(dstate)};
}

}  // namespace bilevel
