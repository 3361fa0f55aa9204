// q_{k+1} = q_k + s r_k,   r_k = b − A q_k,   so   r_{k+1} = r_k − A (s r_k) = (I − A s) r_k:
// from q_0 = 0, q_{K+1} = s Σ_{i=0…K} (I − sA)^i b with K products.
#include "bilevel/linear/neumann.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/linear/system.h"

namespace bilevel {
namespace {

std::vector<double> lengths(const at::Tensor& rows) { return numbers(at::linalg_vector_norm(rows, 2, {1})); }

/// One right-hand side.
struct NeumannRow {
  size_t index = 0;     // among the rows of the system
  double residual = 1;  // of its row of q
  double lowest = 1;    // of its row of best
  LinearResult result;
};

}  // namespace

std::vector<std::string> NeumannOptions::violations() const {
  std::vector<std::string> found;
  check_common(iterations, 0, tolerance, damping, found);
  if (!(scale >= 0 && std::isfinite(scale))) {
    found.push_back(fmt::format("scale = {} must be positive, or 0 for the inner step size", scale));
  }
  return found;
}

void read(Section& section, NeumannOptions& options) {
  section.read("iterations", options.iterations);
  section.read("tolerance", options.tolerance);
  section.read("damping", options.damping);
  section.read("scale", options.scale);
  section.check(options.violations());
}

Neumann::Neumann(NeumannOptions options) : options_(options) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("Neumann: {}.", fmt::join(violations, "; ")));
}

LinearResult Neumann::solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const {
  const System system(A, options_.damping, b, q0, "Neumann::solve");
  const at::Tensor s = step_scale(options_.scale, A, b, "Neumann::solve");
  if (system.rows() == 0) return system.result({});
  // For a symmetric A and a scalar s, ‖r_k‖² = Σ c_i² (1 − s λ_i)^{2k} is log-convex in k: once it rises it rises for ever, and
  // what is allowed is for rounding only. Otherwise ‖r_k‖ may rise for a while and still settle.
  const double growth = A.symmetric && s.dim() == 0 ? 1.001 : 100.0;

  std::vector<LinearResult> results(static_cast<size_t>(system.rows()));
  std::vector<NeumannRow> rows(results.size());
  System::Start start = system.start();
  at::Tensor right = system.b(), q = start.q, r = start.r, best = q.clone();
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i].index = i;
    rows[i].residual = rows[i].lowest = start.residuals[i];
  }

  const auto leave = [&](const std::vector<bool>& done) {
    std::vector<int64_t> left;
    std::vector<NeumannRow> going;
    for (size_t i = 0; i < rows.size(); ++i) {
      if (!done[i]) {
        left.push_back(static_cast<int64_t>(i));
        going.push_back(std::move(rows[i]));
        continue;
      }
      LinearResult& result = rows[i].result;
      result.solution = (failed(result.status) ? best : q)[static_cast<int64_t>(i)].clone();
      result.relative_residual = failed(result.status) ? rows[i].lowest : rows[i].residual;
      results[rows[i].index] = std::move(result);
    }
    if (going.size() < rows.size()) keep_rows(left, {&right, &q, &r, &best});
    rows = std::move(going);
  };
  // Of a residual that is computed from the solution, beside which the recursion's falls for ever: ε ‖A‖ ‖q‖, with ‖A‖ about 1/s.
  const auto rounding = [&](int64_t i) { return 100 * system.epsilon() * at::linalg_vector_norm(q[i] / s).item<double>(); };
  std::vector<bool> done;
  for (const NeumannRow& row : rows) done.push_back(row.residual <= options_.tolerance);
  leave(done);
  for (int64_t k = 0; !rows.empty(); ++k) {
    const at::Tensor term = s * r;
    q.add_(term);
    const bool last = k == options_.iterations;
    // The last residual judges the solution and moves nothing: it is computed from the solution itself, and not counted.
    r = last ? right - system.apply(q) : r - system.apply(term);
    const auto residuals = lengths(r);
    done.assign(rows.size(), last);
    for (size_t i = 0; i < rows.size(); ++i) {
      NeumannRow& row = rows[i];
      row.residual = residuals[i];
      row.result.iterations = k;
      if (!std::isfinite(row.residual)) {
        row.result.status = Status::kNonFinite;
        row.result.message = fmt::format("The residual of term {} is not finite.", k + 1);
        done[i] = true;
        continue;
      }
      row.result.history.push_back(row.residual);
      if (row.residual > growth * row.lowest && row.residual > rounding(static_cast<int64_t>(i))) {
        row.result.status = Status::kDiverged;
        row.result.message = fmt::format(
            "The series diverges at term {}: the scale must be below 2 / (largest eigenvalue of A) and A positive definite.",
            k + 1);
        done[i] = true;
        continue;
      }
      if (row.residual < row.lowest) {
        best[static_cast<int64_t>(i)].copy_(q[static_cast<int64_t>(i)]);
        row.lowest = row.residual;
      }
      if (!last) row.result.iterations = k + 1;
      if (row.residual <= options_.tolerance) {
        row.result.status = Status::kConverged;
        done[i] = true;
      }
    }
    leave(done);
  }

  // Those that ended before the last term have the recursion's residual only.
  std::vector<at::Tensor> solutions;
  std::vector<int64_t> early;
  for (size_t i = 0; i < results.size(); ++i) {
    if (!failed(results[i].status) && static_cast<int64_t>(results[i].history.size()) == options_.iterations + 1) continue;
    solutions.push_back(results[i].solution);
    early.push_back(static_cast<int64_t>(i));
  }
  if (!early.empty()) {
    right = system.b();
    keep_rows(early, {&right});
    const auto residuals = lengths(right - system.apply(at::stack(solutions)));
    for (size_t j = 0; j < early.size(); ++j) {  // an operator that has become NaN on the way leaves the recursion's
      if (std::isfinite(residuals[j])) results[static_cast<size_t>(early[j])].relative_residual = residuals[j];
    }
  }
  for (LinearResult& result : results) {
    if (failed(result.status)) continue;
    result.status = result.relative_residual <= options_.tolerance ? Status::kConverged : Status::kIterationLimit;
    result.message =
        fmt::format("Summed to {} products, to a relative residual of {:.3g}.", result.iterations, result.relative_residual);
  }
  return system.result(std::move(results));
}

}  // namespace bilevel
