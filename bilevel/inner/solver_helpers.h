#pragma once
#include <optional>
#include <string_view>

#include "bilevel/core/config.h"
#include "bilevel/inner/constraints.h"
#include "bilevel/inner/inner_solver.h"

namespace bilevel {

/// Throws Error where y may not move freely, which `solver` would ignore.
void require_free(const Problem& problem, std::string_view solver);
/// Throws Error where there is no inner loss to descend (roots and fixed points).
void require_loss(const Problem& problem, std::string_view solver);
/// Throws Error: there is no trajectory of an update rule.
void refuse_trajectory(const TrajectoryPolicy& policy, std::string_view solver);
/// Throws Error: there is no step size that would stand for the inverse Hessian.
[[noreturn]] void refuse_step_size(std::string_view solver);

/// All samples, of this inner problem and at this solve's first step.
Batch whole_batch(const InnerStart& start, int64_t slice);
/// What y is subject to at x.
ProximalMap proximal_map(const Problem& problem, const at::Tensor& x, const at::Tensor& y);

/// Reads `lr`, a number or "auto" (none).
void read_lr(Section& section, std::optional<double>& lr);

/// Status and message from loss, stationarity and steps. `stuck`: rounding allows no further decrease.
void conclude(InnerSolution& solution, double tolerance, bool stuck);

/// Relative rounding of a loss in the dtype of y.
double loss_rounding(const at::Tensor& y);

}  // namespace bilevel
