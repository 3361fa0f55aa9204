//   s = x_k − x_{k−1},  z = g_k − g_{k−1};   a pair is kept where ⟨s, z⟩ > 0, and one with ⟨s, z⟩ ≤ 0 drops all
//   d = −H g,  H from the pairs by the two-loop recursion, H₀ = ⟨s, z⟩/⟨z, z⟩ I of the last pair
//   x ← x + min(1, max_step / ‖d‖∞) d;   without a pair d = −max_step g/‖g‖∞
#include "bilevel/outer/bfgs.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"
#include "bilevel/outer/step.h"

namespace bilevel {
namespace {

// −H g for pairs s, z [m, dx], the oldest first.
at::Tensor direction(const at::Tensor& s, const at::Tensor& z, const at::Tensor& gradient) {
  at::Tensor d = -gradient;
  const int64_t m = s.size(0);
  std::vector<double> alpha(static_cast<size_t>(m)), sz(alpha.size());
  for (int64_t i = m; i-- > 0;) {
    sz[i] = dot_of(s[i], z[i]);
    alpha[i] = dot_of(s[i], d) / sz[i];
    add_scaled(d, -alpha[i], z[i]);
  }
  scale(d, sz[m - 1] / dot_of(z[m - 1], z[m - 1]));
  for (int64_t i = 0; i < m; ++i) add_scaled(d, alpha[i] - dot_of(z[i], d) / sz[i], s[i]);
  return d;
}

}  // namespace

std::vector<std::string> OuterBfgsOptions::violations() const {
  std::vector<std::string> found;
  if (!(max_step > 0 && std::isfinite(max_step))) found.push_back(fmt::format("max_step = {} must be positive", max_step));
  if (history < 1) found.push_back(fmt::format("history = {} must be at least 1", history));
  return found;
}

void read(Section& section, OuterBfgsOptions& options) {
  section.read("max_step", options.max_step);
  section.read("history", options.history);
  section.check(options.violations());
}

OuterBfgs::OuterBfgs(OuterBfgsOptions options) : options_(options) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("OuterBfgs: {}.", fmt::join(violations, "; ")));
}

void OuterBfgs::learn(State& state, const at::Tensor& x, const at::Tensor& gradient) const {
  const at::Tensor none = at::empty({0, x.size(0)}, x.options());
  at::Tensor s = none, z = none;
  if (state.has("outer.s")) {
    s = state.tensor("outer.s");
    z = state.tensor("outer.z");
  }
  if (state.has("outer.x")) {
    const at::Tensor new_s = x - state.tensor("outer.x"), new_z = gradient - state.tensor("outer.gradient");
    const double curvature = dot_of(new_s, new_z), size = norm_of(new_s) * norm_of(new_z);
    if (curvature > 1e-6 * size) {
      const int64_t kept = std::min(s.size(0), options_.history - 1), first = s.size(0) - kept;
      s = at::cat({s.narrow(0, first, kept), new_s.unsqueeze(0)});
      z = at::cat({z.narrow(0, first, kept), new_z.unsqueeze(0)});
    } else if (size > 0) {
      s = z = none;
    }
  }
  state.set("outer.s", s);
  state.set("outer.z", z);
  state.set("outer.x", x.clone());
  state.set("outer.gradient", gradient.clone());
}

at::Tensor OuterBfgs::step(State& state, const at::Tensor& x, const at::Tensor& gradient) const {
  check_step(x, gradient, "OuterBfgs::step");
  const at::NoGradGuard no_grad;
  learn(state, x, gradient);
  const at::Tensor s = state.tensor("outer.s");
  const bool informed = s.size(0) > 0;
  const at::Tensor d = informed ? direction(s, state.tensor("outer.z"), gradient) : -gradient;
  const double longest = d.numel() > 0 ? d.abs().max().item<double>() : 0.0;
  if (longest == 0) return x.clone();
  const double scale = informed ? std::min(1.0, options_.max_step / longest) : options_.max_step / longest;
  return x.add(d, scale * outer_scale(state));
}

}  // namespace bilevel
