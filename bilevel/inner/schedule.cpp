#include "bilevel/inner/schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>

// cosine:  lr_t = η_min + (lr − η_min) (1 + cos(π t/T_max))/2
// linear:  lr_t = lr (start + (end − start) min(t, n)/n),   n = total_iters
// step:    lr_t = lr γ^⌊t/step_size⌋

namespace bilevel {
namespace {

const std::vector<std::string> kNames = {"constant", "cosine", "linear", "step", "warmup-cosine"};  // in the order of Kind

ScheduledLr cosine(double eta_min, int64_t t, int64_t T_max) {
  const double c = (1 + std::cos(std::numbers::pi * static_cast<double>(t) / static_cast<double>(T_max))) / 2;
  return {c, eta_min * (1 - c)};
}

double linear(double start, double end, int64_t t, int64_t n) {
  return n == 0 ? end : start + (end - start) * static_cast<double>(std::min(t, n)) / static_cast<double>(n);
}

}  // namespace

std::vector<std::string> ScheduleOptions::violations() const {
  std::vector<std::string> found;
  if (T_max < 0) found.push_back(fmt::format("T_max = {} must be at least 1, or 0 for all steps of the solve", T_max));
  if (!(eta_min >= 0)) found.push_back(fmt::format("eta_min = {} must be at least 0", eta_min));
  if (!(start_factor > 0 && start_factor <= 1))
    found.push_back(fmt::format("start_factor = {} must lie in (0, 1]", start_factor));
  if (!(end_factor >= 0 && end_factor <= 1)) found.push_back(fmt::format("end_factor = {} must lie in [0, 1]", end_factor));
  if (total_iters < 0) found.push_back(fmt::format("total_iters = {} must be at least 0", total_iters));
  if (step_size < 1) found.push_back(fmt::format("step_size = {} must be at least 1", step_size));
  if (!(gamma > 0)) found.push_back(fmt::format("gamma = {} must be positive", gamma));
  return found;
}

void read(Section& section, ScheduleOptions& options) {
  using Kind = ScheduleOptions::Kind;
  section.read_choice("schedule", options.kind, kNames);
  const bool warms_up = options.kind == Kind::kWarmupCosine;
  if (options.kind == Kind::kCosine || warms_up) {
    section.read("T_max", options.T_max);
    section.read("eta_min", options.eta_min);
  }
  if (options.kind == Kind::kLinear || warms_up) {
    section.read("start_factor", options.start_factor);
    section.read("total_iters", options.total_iters);
  }
  if (options.kind == Kind::kLinear) section.read("end_factor", options.end_factor);
  if (options.kind == Kind::kStep) {
    section.read("step_size", options.step_size);
    section.read("gamma", options.gamma);
  }
  section.check(options.violations());
}

ScheduledLr scheduled_lr(const ScheduleOptions& s, int64_t t, int64_t steps) {
  using Kind = ScheduleOptions::Kind;
  const auto all = [&](int64_t before) { return s.T_max > 0 ? s.T_max : std::max<int64_t>(1, steps - before); };
  switch (s.kind) {
    case Kind::kConstant: break;
    case Kind::kCosine: return cosine(s.eta_min, t, all(0));
    case Kind::kLinear: return {linear(s.start_factor, s.end_factor, t, s.total_iters), 0.0};
    case Kind::kStep: return {std::pow(s.gamma, static_cast<double>(t / s.step_size)), 0.0};
    case Kind::kWarmupCosine:
      if (t < s.total_iters) return {linear(s.start_factor, 1.0, t, s.total_iters), 0.0};
      return cosine(s.eta_min, t - s.total_iters, all(s.total_iters));
  }
  return {};
}

}  // namespace bilevel
