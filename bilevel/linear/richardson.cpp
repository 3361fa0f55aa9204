// q_{k+1} = q_k + s r_k,   r_k = b − A q_k computed from q_k itself
#include "bilevel/linear/richardson.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/linear/system.h"

namespace bilevel {
namespace {

/// One right-hand side.
struct RichardsonRow {
  size_t index = 0;   // among the rows of the system
  double lowest = 1;  // residual of its row of best
  LinearResult result;
};

}  // namespace

std::vector<std::string> RichardsonOptions::violations() const {
  std::vector<std::string> found;
  check_common(iterations, 1, tolerance, damping, found);
  if (!(scale >= 0 && std::isfinite(scale))) {
    found.push_back(fmt::format("scale = {} must be positive, or 0 for the inner step size", scale));
  }
  return found;
}

void read(Section& section, RichardsonOptions& options) {
  section.read("iterations", options.iterations);
  section.read("tolerance", options.tolerance);
  section.read("damping", options.damping);
  section.read("scale", options.scale);
  section.check(options.violations());
}

Richardson::Richardson(RichardsonOptions options) : options_(options) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("Richardson: {}.", fmt::join(violations, "; ")));
}

LinearResult Richardson::solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const {
  const System system(A, options_.damping, b, q0, "Richardson::solve");
  const at::Tensor s = step_scale(options_.scale, A, b, "Richardson::solve");
  if (system.rows() == 0) return system.result({});
  const double tolerance = std::max(options_.tolerance, system.epsilon());
  // As for neumann: with a symmetric A and a scalar s the residual never rises but by rounding unless it rises for ever.
  const double growth = A.symmetric && s.dim() == 0 ? 1.001 : 100.0;

  std::vector<LinearResult> results(static_cast<size_t>(system.rows()));
  std::vector<RichardsonRow> rows(results.size());
  System::Start start = system.start();
  at::Tensor right = system.b(), q = start.q, r = start.r, best = q.clone();
  std::vector<double> residuals = start.residuals;
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].index = i;
    rows[i].lowest = residuals[i];
  }

  for (int64_t k = 0; !rows.empty(); ++k) {
    if (k > 0) {
      q.add_(s * r);
      r = right - system.apply(q);
      residuals = numbers(at::linalg_vector_norm(r, 2, {1}));
    }
    std::vector<int64_t> left;
    std::vector<RichardsonRow> going;
    for (size_t i = 0; i < rows.size(); ++i) {
      RichardsonRow& row = rows[i];
      LinearResult& result = row.result;
      const auto at = static_cast<int64_t>(i);
      result.iterations = k;
      bool done = k == options_.iterations;
      if (!std::isfinite(residuals[i])) {
        result.status = Status::kNonFinite;
        result.message = fmt::format("The residual after step {} is not finite.", k);
        done = true;
      } else {
        if (k > 0) result.history.push_back(residuals[i]);
        const bool rises = residuals[i] > growth * row.lowest;
        // A residual cannot be smaller than the rounding of A q: ε ‖A‖ ‖q‖, with ‖A‖ about 1/s.
        if (rises && residuals[i] <= 100 * system.epsilon() * at::linalg_vector_norm(q[at] / s).item<double>()) {
          result.message = system.stopped_by_rounding(row.lowest);
          done = true;
        } else if (rises) {
          result.status = Status::kDiverged;
          result.message = fmt::format(
              "The fixed point diverges at step {}: every |1 − sλ| must be below 1, so the scale below 2 / (largest eigenvalue "
              "of A) and the eigenvalues in the right half plane.",
              k);
          done = true;
        } else if (residuals[i] < row.lowest) {
          best[at].copy_(q[at]);
          row.lowest = residuals[i];
        }
        done = done || row.lowest <= tolerance;
      }
      if (!done) {
        left.push_back(at);
        going.push_back(std::move(row));
        continue;
      }
      if (row.lowest <= tolerance && !failed(result.status)) result.status = Status::kConverged;
      if (result.message.empty()) {
        result.message = fmt::format("{} in {} steps to a relative residual of {:.3g}.",
                                     result.status == Status::kConverged ? "Settled" : "Went", k, row.lowest);
      }
      result.solution = best[at].clone();
      result.relative_residual = row.lowest;
      results[row.index] = std::move(result);
    }
    if (going.size() < rows.size()) {
      keep_rows(left, {&right, &q, &r, &best});
      std::vector<double> of_left;
      for (const int64_t i : left) of_left.push_back(residuals[static_cast<size_t>(i)]);
      residuals = std::move(of_left);
    }
    rows = std::move(going);
  }
  return system.result(std::move(results));
}

}  // namespace bilevel
