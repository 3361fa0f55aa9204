#include "bilevel/inner/solver_helpers.h"

#include <fmt/format.h>

#include <cmath>

#include "bilevel/core/error.h"

namespace bilevel {

void require_free(const Problem& problem, std::string_view solver) {
  require(!problem.has_inner_constraints(),
          fmt::format("The inner solver {} lets y move freely, and this problem has constraints on y, or an l1 penalty; "
                      "use solver = \"prox\".",
                      solver));
}

void require_loss(const Problem& problem, std::string_view solver) {
  require(!problem.has_optimality_map(),
          fmt::format("The inner solver {} descends a loss, and this problem gives an optimality map r(x, y) = 0 instead; "
                      "use solver = \"closed-form\" where r is linear in y, or a rule.",
                      solver));
}

void refuse_trajectory(const TrajectoryPolicy& policy, std::string_view solver) {
  require(!policy.keep,
          fmt::format("{} keeps no trajectory to unroll; use the implicit estimator, or a rule such as sgd.", solver));
}

void refuse_step_size(std::string_view solver) {
  throw Error(fmt::format(
      "{} has no step size for a one-step estimator or Neumann's scale; give `scale`, or use a rule such as sgd.", solver));
}

Batch whole_batch(const InnerStart& start, int64_t slice) {
  Batch batch;
  batch.step = start.first_step;
  batch.slice = slice;
  return batch;
}

ProximalMap proximal_map(const Problem& problem, const at::Tensor& x, const at::Tensor& y) {
  return {problem.has_inner_constraints() ? problem.inner_constraints(x.detach()) : InnerConstraints{}, y};
}

void read_lr(Section& section, std::optional<double>& lr) {
  if (section.is_number("lr") || (!section.has("lr") && lr)) {
    double number = lr.value_or(0);
    section.read("lr", number);
    lr = number;
    return;
  }
  std::string text = "auto";
  section.read("lr", text);
  if (text != "auto") section.fail("lr", fmt::format("expected a number or \"auto\", got \"{}\".", text));
  lr = std::nullopt;
}

void conclude(InnerSolution& solution, double tolerance, bool stuck) {
  const double norm = solution.stationarity;
  if (!std::isfinite(norm + solution.loss)) {
    solution.status = Status::kNonFinite;
    solution.message = "The inner loss or its gradient is not finite.";
  } else if (norm <= tolerance) {
    solution.status = Status::kConverged;
    solution.message = fmt::format("Stationarity {:.2g} after {} iterations.", norm, solution.steps);
  } else {
    solution.status = Status::kIterationLimit;
    solution.message = stuck ? fmt::format("No further decrease within rounding; stationarity {:.2g}.", norm)
                             : fmt::format("Stationarity {:.2g} after all {} iterations.", norm, solution.steps);
  }
}

double loss_rounding(const at::Tensor& y) { return y.scalar_type() == at::kDouble ? 1e-15 : 1e-7; }

}  // namespace bilevel
