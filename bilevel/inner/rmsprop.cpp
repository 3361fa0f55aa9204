#include "bilevel/inner/rmsprop.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/inner/rule_helpers.h"

// With G = g + w y:
//
//   v' = α v + (1 − α) G²
//   a' = a + (1 − α)(G − a),  u = v' − a'²     centred;   otherwise  u = v'
//   d  = G / (√u + ε), 0 where v' = 0
//   b' = μ b + d,   y' = y − η b'              with momentum;   otherwise  y' = y − η d

namespace bilevel {

std::vector<std::string> RmspropRuleOptions::violations() const {
  std::vector<std::string> found;
  if (!(lr >= 0)) found.push_back(fmt::format("lr = {} must be at least 0", lr));
  if (!(alpha >= 0 && alpha < 1)) found.push_back(fmt::format("alpha = {} must lie in [0, 1)", alpha));
  if (!(eps >= 0)) found.push_back(fmt::format("eps = {} must be at least 0", eps));
  if (!(weight_decay >= 0)) found.push_back(fmt::format("weight_decay = {} must be at least 0", weight_decay));
  if (!(momentum >= 0)) found.push_back(fmt::format("momentum = {} must be at least 0", momentum));
  return found;
}

void read(Section& section, RmspropRuleOptions& options) {
  section.read("alpha", options.alpha);
  section.read("eps", options.eps);
  section.read("weight_decay", options.weight_decay);
  section.read("momentum", options.momentum);
  section.read("centered", options.centered);
  section.check(options.violations());
}

RmspropRule::RmspropRule(RmspropRuleOptions options)
    : CoupledRule(options.lr, options.weight_decay, options.learned),
      options_(std::move(options)),
      buffered_(options_.momentum != 0 || contains(options_.learned, "momentum")) {
  const auto found = options_.violations();
  require(found.empty(), fmt::format("RmspropRule: {}.", fmt::join(found, "; ")));
  check_learned(*this, options_.learned);
}

std::vector<std::string> RmspropRule::hyperparameters() const {
  if (!buffered_) return {"lr", "weight_decay"};
  return {"lr", "momentum", "weight_decay"};
}

std::vector<double> RmspropRule::defaults() const {
  if (!buffered_) return {options_.lr, options_.weight_decay};
  return {options_.lr, options_.momentum, options_.weight_decay};
}

RuleOutput RmspropRule::step(const RuleInput& in) const {
  const at::Tensor& lr = in.h[0];
  const double alpha = options_.alpha;
  const at::Tensor G = decayed(in);
  const at::Tensor v = alpha * in.state[0] + (1 - alpha) * G * G;
  Tensors state{v};
  at::Tensor u = v;
  if (options_.centered) {
    const at::Tensor a = in.state[1] + (1 - alpha) * (G - in.state[1]);
    u = v - a * a;
    state.push_back(a);
  }
  const at::Tensor live = v > 0;
  const at::Tensor d = at::where(live, G / at::where(live, finite_sqrt(u) + options_.eps, at::ones_like(u)), at::zeros_like(G));
  if (!buffered_) return {in.y - lr * d, std::move(state)};
  const at::Tensor b = in.h[1] * in.state.back() + d;
  state.push_back(b);
  return {in.y - lr * b, std::move(state)};
}

at::Tensor RmspropRule::preconditioner(const Tensors& state, int64_t) const {
  return 1 / (finite_sqrt(options_.centered ? state[0] - state[1] * state[1] : state[0]) + options_.eps);
}

}  // namespace bilevel
