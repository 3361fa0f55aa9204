#include "studies/study.h"

#include <ATen/ATen.h>

#include <cmath>

#include "bilevel/core/stream.h"

namespace bilevel {
namespace {

// --- Theorem 4.1: derivatives g_t = μ_t + σ n_t, |μ_{t+1} − μ_t| ≤ ε, in windows of W, each replaced by its window's mean ---

struct Theorem {
  int64_t steps, window, draws;
  double noise, drift, correlation;
};

/// The mean of (window mean of μ + n − μ)² over steps and draws; μ, n [draws or 1, T]. Steps past the last whole window are left out.
double squared_error(const at::Tensor& mu, const at::Tensor& noise, int64_t window) {
  const auto windows = [window](const at::Tensor& all) {
    return all.narrow(1, 0, all.size(1) / window * window).reshape({all.size(0), all.size(1) / window, window});
  };
  return (windows(mu + noise).mean(2, true) - windows(mu)).square().mean().item<double>();
}

void check_theorem(StudyRun& run, const Theorem& theorem, int64_t seed) {
  const Stream stream(static_cast<uint64_t>(seed), "fds theorem");
  const double W = static_cast<double>(theorem.window), variance = theorem.noise * theorem.noise;
  const double c = theorem.correlation, slack = theorem.drift * theorem.drift * (W * W - 1) / 12;
  const std::vector<int64_t> sizes{theorem.draws, theorem.steps};
  const at::Tensor noise = theorem.noise * stream.at(0).normal(sizes), still = at::zeros({1, theorem.steps}, at::kDouble);
  run.measure("error-without-drift", squared_error(still, noise, theorem.window) / (variance / W));

  const at::Tensor ramp = theorem.drift * at::arange(theorem.steps, at::kDouble).unsqueeze(0);
  run.measure("error-with-the-greatest-drift", squared_error(ramp, noise, theorem.window) / (variance / W + slack));

  // One common part in each window and one of its own for each step: correlation c within a window.
  const at::Tensor common = stream.at(1).normal({theorem.draws, theorem.steps / theorem.window}).repeat_interleave(theorem.window, 1);
  const at::Tensor correlated = std::sqrt(c) * theorem.noise * common + std::sqrt(1 - c) * noise.narrow(1, 0, common.size(1));
  run.measure("error-with-correlated-noise",
              squared_error(still.narrow(1, 0, common.size(1)), correlated, theorem.window) / ((1 + c * (W - 1)) / W * variance));

  const at::Tensor walk = (theorem.drift * (2 * stream.at(2).uniform(sizes) - 1)).cumsum(1);
  run.measure("bound-with-random-drift", squared_error(walk, noise, theorem.window) / (variance / W + slack));

  int64_t best = 1;
  double least = squared_error(ramp, noise, 1);
  for (int64_t window = 2; window <= theorem.window; ++window) {
    const double error = squared_error(ramp, noise, window);
    if (error < least) {
      least = error;
      best = window;
    }
  }
  run.measure("best-window", static_cast<double>(best) / std::cbrt(6 * variance / (theorem.drift * theorem.drift)));
}

/// Squared error against the window, measured and by the theorem: noise that sharing takes away, and bias that it brings.
LineChart picture_of_theorem(const Theorem& theorem) {
  const Stream stream(0, "fds picture");
  const at::Tensor noise = theorem.noise * stream.at(0).normal({theorem.draws, theorem.steps});
  const at::Tensor ramp = theorem.drift * at::arange(theorem.steps, at::kDouble).unsqueeze(0);
  const at::Tensor walk = (theorem.drift * (2 * stream.at(1).uniform({theorem.draws, theorem.steps}) - 1)).cumsum(1);
  LineChart chart{.title = "Squared error of a derivative shared by W steps", .x_label = "W", .y_label = "squared error", .log_y = true,
                  .series = {{"steady", {}, {}}, {"random drift", {}, {}}, {"greatest drift", {}, {}}, {"theorem 4.1, greatest drift", {}, {}}}};
  chart.log_x = true;
  for (const int64_t window : {1, 2, 4, 5, 8, 10, 20, 40, 80}) {
    const double W = static_cast<double>(window);
    const double values[] = {squared_error(at::zeros_like(ramp), noise, window), squared_error(walk, noise, window),
                             squared_error(ramp, noise, window),
                             theorem.noise * theorem.noise / W + theorem.drift * theorem.drift * (W * W - 1) / 12};
    for (size_t i = 0; i < chart.series.size(); ++i) {
      chart.series[i].x.push_back(W);
      chart.series[i].y.push_back(values[i]);
    }
  }
  return chart;
}

}  // namespace

void study_fds(StudyRun& run) {
  const Theorem theorem{run.setting<int64_t>("theorem_steps"), run.setting<int64_t>("theorem_window"), run.setting<int64_t>("theorem_draws"),
                        run.setting<double>("theorem_noise"),  run.setting<double>("theorem_drift"),   run.setting<double>("theorem_correlation")};
  const std::vector<int64_t> seeds = run.seeds();
  for (size_t i = 0; i < seeds.size(); ++i) {
    run.progress("theorem 4.1", static_cast<double>(i) / static_cast<double>(seeds.size()));
    check_theorem(run, theorem, seeds[i]);
  }
  run.picture(picture_of_theorem(theorem));
}

}  // namespace bilevel
