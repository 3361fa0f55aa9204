#include "bilevel/inner/sgd.h"

#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/rule_helpers.h"

// With G = g + w y, learning rate η, momentum μ, dampening τ and buffer b:
//
//   b' = G                       at the first step of a fresh state (PyTorch does not dampen it)
//   b' = μ b + (1 − τ) G         later
//   d  = b', or G + μ b' for Nesterov;   d = G without momentum
//   y' = y − η d

namespace bilevel {
std::vector<std::string> SgdRuleOptions::violations() const {
  std::vector<std::string> found;
  const bool moves = momentum != 0 || contains(learned, "momentum");
  if (!(lr >= 0)) found.push_back(fmt::format("lr = {} must be at least 0", lr));
  if (!(momentum >= 0)) found.push_back(fmt::format("momentum = {} must be at least 0", momentum));
  if (!(weight_decay >= 0)) found.push_back(fmt::format("weight_decay = {} must be at least 0", weight_decay));
  if (nesterov && (!moves || dampening != 0)) {
    found.push_back(fmt::format("nesterov needs momentum > 0 and dampening = 0, and they are {} and {}", momentum, dampening));
  }
  return found;
}

void read(Section& section, SgdRuleOptions& options) {
  section.read("momentum", options.momentum);
  section.read("dampening", options.dampening);
  section.read("weight_decay", options.weight_decay);
  section.read("nesterov", options.nesterov);
  section.check(options.violations());
}

SgdRule::SgdRule(SgdRuleOptions options)
    : CoupledRule(options.lr, options.weight_decay, options.learned),
      options_(std::move(options)),
      buffered_(options_.momentum != 0 || contains(options_.learned, "momentum")) {
  const auto found = options_.violations();
  require(found.empty(), fmt::format("SgdRule: {}.", fmt::join(found, "; ")));
  check_learned(*this, options_.learned);
}

std::vector<std::string> SgdRule::hyperparameters() const {
  if (!buffered_) return {"lr", "weight_decay"};
  return {"lr", "momentum", "dampening", "weight_decay"};
}

std::vector<double> SgdRule::defaults() const {
  if (!buffered_) return {options_.lr, options_.weight_decay};
  return {options_.lr, options_.momentum, options_.dampening, options_.weight_decay};
}

RuleOutput SgdRule::step(const RuleInput& in) const {
  const at::Tensor& lr = in.h[0];
  const at::Tensor G = decayed(in);
  if (!buffered_) return {at::addcmul(in.y, lr, G, -1), {}};
  const at::Tensor &mu = in.h[1], &tau = in.h[2];
  const at::Tensor b = in.step == 0 ? G.clone() : mu * in.state[0] + (1 - tau) * G;
  return {in.y - lr * (options_.nesterov ? G + mu * b : b), {b}};
}

RuleCotangent SgdRule::vjp(const RuleInput& in, const at::Tensor& y_bar, const Tensors& state_bar) const {
  const at::NoGradGuard no_grad;
  const at::Tensor &lr = in.h[0], &w = in.h.back();
  const bool first = in.step == 0, nesterov = options_.nesterov;
  const at::Tensor d_bar = -lr * y_bar;
  at::Tensor b_bar;  // of b'
  RuleCotangent bar;
  if (!buffered_) {
    bar.gradient = d_bar;
  } else {
    const at::Tensor &mu = in.h[1], &tau = in.h[2];
    b_bar = state_bar[0] + (nesterov ? mu * d_bar : d_bar);
    bar.state = {first ? at::zeros_like(in.state[0]) : mu * b_bar};
    bar.gradient = first ? b_bar : (1 - tau) * b_bar;
    if (nesterov) bar.gradient = bar.gradient + d_bar;
  }
  bar.y = decays() ? y_bar + w * bar.gradient : y_bar;
  if (in.h_is_constant) return bar;

  const at::Tensor G = decayed(in), w_bar = hyperparameter_bar(w, in.y, bar.gradient);
  if (!buffered_) {
    bar.h = {hyperparameter_bar(lr, -G, y_bar), w_bar};
    return bar;
  }
  const at::Tensor &mu = in.h[1], &tau = in.h[2], &b = in.state[0];
  const at::Tensor b_new = first ? G : mu * b + (1 - tau) * G;
  at::Tensor mu_bar = at::zeros_like(mu), tau_bar = at::zeros_like(tau);
  if (nesterov) mu_bar = hyperparameter_bar(mu, b_new, d_bar);
  if (!first) {
    mu_bar = mu_bar + hyperparameter_bar(mu, b, b_bar);
    tau_bar = hyperparameter_bar(tau, -G, b_bar);
  }
  bar.h = {hyperparameter_bar(lr, nesterov ? -(G + mu * b_new) : -b_new, y_bar), mu_bar, tau_bar, w_bar};
  return bar;
}

RuleOutput SgdRule::jvp(const RuleInput& in, const RuleCotangent& tangent) const {
  const at::NoGradGuard no_grad;
  const at::Tensor &lr = in.h[0], &w = in.h.back(), &dlr = tangent.h[0], &dw = tangent.h.back();
  const at::Tensor G = decayed(in);
  const at::Tensor dG = tangent.gradient + w * tangent.y + dw * in.y;
  if (!buffered_) return {tangent.y - lr * dG - dlr * G, {}};
  const at::Tensor &mu = in.h[1], &tau = in.h[2], &dmu = tangent.h[1], &dtau = tangent.h[2];
  const bool first = in.step == 0;
  const at::Tensor b = first ? G : mu * in.state[0] + (1 - tau) * G;
  const at::Tensor db = first ? dG : dmu * in.state[0] + mu * tangent.state[0] - dtau * G + (1 - tau) * dG;
  const at::Tensor d = options_.nesterov ? G + mu * b : b;
  const at::Tensor dd = options_.nesterov ? dG + dmu * b + mu * db : db;
  return {tangent.y - dlr * d - lr * dd, {db}};
}

}  // namespace bilevel
