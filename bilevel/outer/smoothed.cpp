#include "bilevel/outer/smoothed.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "bilevel/core/error.h"
#include "bilevel/outer/step.h"

namespace bilevel {
namespace {

std::string slot(int64_t j) { return fmt::format("outer.window.{}", j); }

}  // namespace

Smoothed::Smoothed(std::unique_ptr<OuterOptimizer> optimizer, int64_t window, double decay)
    : optimizer_(std::move(optimizer)), window_(window), decay_(decay) {
  require(optimizer_ != nullptr, "Smoothed: an outer optimiser is needed, got none.");
  require(window_ >= 1, fmt::format("Smoothed: a window of {} hypergradients; at least 1 would be right.", window_));
  require(decay_ > 0 && decay_ <= 1,
          fmt::format("Smoothed: weights that fall by {} a step; more than 0 and at most 1 would be right.", decay_));
}

at::Tensor Smoothed::step(State& state, const at::Tensor& x, const at::Tensor& gradient) const {
  if (window_ == 1) return optimizer_->step(state, x, gradient);
  check_step(x, gradient, "Smoothed::step");
  const at::NoGradGuard no_grad;
  const int64_t t = state.has("outer.window_step") ? state.integer("outer.window_step") : 0;
  state.set(slot(t % window_), gradient.detach().clone());
  state.set("outer.window_step", t + 1);
  std::vector<at::Tensor> stored;
  std::vector<double> weights;
  for (int64_t j = 0; j < std::min(t + 1, window_); ++j) {
    stored.push_back(state.tensor(slot(j)));
    weights.push_back(std::pow(decay_, (t % window_ - j + window_) % window_));  // of its age
  }
  if (decay_ == 1) return optimizer_->step(state, x, at::stack(stored).mean(0));
  const at::Tensor weight = at::tensor(weights, x.options());
  return optimizer_->step(state, x, weight.matmul(at::stack(stored)) / weight.sum());
}

}  // namespace bilevel
