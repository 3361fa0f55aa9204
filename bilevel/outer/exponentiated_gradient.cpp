//   x_i ← x_i exp(−γ d_i) / Σ_j x_j exp(−γ d_j),   the sum over the part of x that holds i
//
// That is softmax(log x − γ d), which neither overflows nor feels a constant in d.
#include "bilevel/outer/exponentiated_gradient.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "bilevel/core/error.h"
#include "bilevel/outer/step.h"

namespace bilevel {
namespace {

at::Tensor moved(const at::Tensor& x, const at::Tensor& logarithm_step) {
  // In double, so that sums stay at 1 to the last digit of x's own precision.
  const at::Tensor before = x.to(at::kDouble);
  const double least = before.min().item<double>(), sum = before.sum().item<double>();
  require(least >= 0 && std::abs(sum - 1) <= 1e-5,
          fmt::format("ExponentiatedGradient::step: x has a least element of {:.3g} and the sum {:.6g}; expected a point of the "
                      "simplex, at least 0 and with the sum 1: constrain x to it, and give `parts` where x has several.",
                      least, sum));
  return (before.log() - logarithm_step.to(at::kDouble)).softmax(0).to(x.scalar_type());
}

}  // namespace

std::vector<std::string> ExponentiatedGradientOptions::violations() const {
  std::vector<std::string> found;
  if (!(lr >= 0 && std::isfinite(lr))) found.push_back(fmt::format("lr = {} must be finite and at least 0", lr));
  if (std::any_of(parts.begin(), parts.end(), [](int64_t length) { return length < 1; })) {
    found.push_back(fmt::format("parts = [{}] must be lengths of at least 1", fmt::join(parts, ", ")));
  }
  return found;
}

void read(Section& section, ExponentiatedGradientOptions& options) {
  section.read("lr", options.lr);
  section.read("parts", options.parts);
  section.check(options.violations());
}

ExponentiatedGradient::ExponentiatedGradient(ExponentiatedGradientOptions options) : options_(std::move(options)) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("ExponentiatedGradient: {}.", fmt::join(violations, "; ")));
}

at::Tensor ExponentiatedGradient::step(State& state, const at::Tensor& x, const at::Tensor& gradient) const {
  check_step(x, gradient, "ExponentiatedGradient::step");
  const at::NoGradGuard no_grad;
  const at::Tensor step = options_.lr * outer_scale(state) * gradient;
  if (options_.parts.empty()) return moved(x, step);
  const int64_t total = std::accumulate(options_.parts.begin(), options_.parts.end(), int64_t{0});
  require(total == x.size(0),
          fmt::format("ExponentiatedGradient::step: parts = [{}] are {} elements together; expected the {} of x.",
                      fmt::join(options_.parts, ", "), total, x.size(0)));
  const std::vector<at::Tensor> xs = x.split_with_sizes(options_.parts), steps = step.split_with_sizes(options_.parts);
  std::vector<at::Tensor> after;
  for (size_t i = 0; i < xs.size(); ++i) after.push_back(moved(xs[i], steps[i]));
  return at::cat(after);
}

}  // namespace bilevel
