#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "bilevel/core/config.h"

namespace bilevel {

/// How lr changes with the step t of a solve, with the names and the meaning of torch.optim.lr_scheduler.
struct ScheduleOptions {
  enum class Kind {
    kConstant,
    kCosine,        // CosineAnnealingLR: T_max, eta_min
    kLinear,        // LinearLR: start_factor, end_factor, total_iters
    kStep,          // StepLR: step_size, gamma
    kWarmupCosine,  // LinearLR from start_factor to 1 in total_iters steps, then CosineAnnealingLR, as SequentialLR joins them
  };
  Kind kind = Kind::kConstant;
  int64_t T_max = 0;  // 0: all steps of the solve (after the warm-up)
  double eta_min = 0.0;
  double start_factor = 1.0 / 3, end_factor = 1.0;
  int64_t total_iters = 5;
  int64_t step_size = 30;  // PyTorch has no default; this is its manual's example
  double gamma = 0.1;
  std::vector<std::string> violations() const;
};
/// Keys: schedule, and those of its kind.
void read(Section& section, ScheduleOptions& options);

/// lr_t = scale · lr + offset, so that a schedule composes with an lr that x determines.
struct ScheduledLr {
  double scale = 1.0, offset = 0.0;
};
ScheduledLr scheduled_lr(const ScheduleOptions& schedule, int64_t t, int64_t steps);

}  // namespace bilevel
