// q_{k+1} = q_k − s ((A_k + δ) q_k − b),   q = mean of q_{k}, k > (1 − tail) K
#include "bilevel/linear/sgd.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/linear/best_iterate.h"

namespace bilevel {
namespace {

constexpr double kGone = 1e8;  // ‖q‖ beyond this times its start is divergence, should it overflow later

LinearResult solve_one(const System& system, const SgdSolverOptions& options, const at::Tensor& s, const at::Tensor& b,
                       const at::Tensor& q0) {
  const Operator& A = system.A();
  BestIterate best(system, b, q0);
  LinearResult& result = best.result;
  at::Tensor q = best.q().clone(), mean = at::zeros_like(q);
  // At least the last one is in it.
  const auto skipped = std::min(options.iterations - 1,
                                static_cast<int64_t>(std::floor((1 - options.tail) * static_cast<double>(options.iterations))));
  bool gone = false;
  for (int64_t k = 0; k < options.iterations; ++k) {
    const at::Tensor Aq = A.apply_batch ? A.apply_batch(q, k).detach() : A.apply(q).detach();
    const at::Tensor gradient = Aq - b + options.damping * q;
    q = q - s * gradient;
    const double length = at::linalg_vector_norm(q).item<double>();
    if (!std::isfinite(length)) {
      result.status = gone ? Status::kDiverged : Status::kNonFinite;
      result.message = gone ? "The iterates grew without end: the scale must be below 2 / (largest eigenvalue of A)."
                            : fmt::format("The product of iteration {} is not finite.", k + 1);
      break;
    }
    gone = gone || length > kGone;
    ++result.iterations;
    if (k >= skipped) mean.add_((q - mean) / static_cast<double>(k - skipped + 1));
  }
  if (!failed(result.status)) {
    const double residual = at::linalg_vector_norm(b - system.apply(mean)).item<double>();
    if (!(residual <= best.residual())) {
      result.status = std::isfinite(residual) ? Status::kDiverged : Status::kNonFinite;
      result.message = fmt::format(
          "The end leaves a relative residual of {:.3g}, more than the start: a smaller scale, or larger batches, would help.",
          residual);
    } else {
      best.offer(mean, residual, true);
      result.history.push_back(residual);
    }
  }
  return best.finish(system.epsilon());
}

}  // namespace

std::vector<std::string> SgdSolverOptions::violations() const {
  std::vector<std::string> found;
  check_common(iterations, 1, 0.0, damping, found);
  if (!(scale >= 0 && std::isfinite(scale))) {
    found.push_back(fmt::format("scale = {} must be positive, or 0 for the inner step size", scale));
  }
  if (!(tail >= 0 && tail <= 1)) found.push_back(fmt::format("tail = {} must be in [0, 1]", tail));
  return found;
}

void read(Section& section, SgdSolverOptions& options) {
  section.read("iterations", options.iterations);
  section.read("scale", options.scale);
  section.read("tail", options.tail);
  section.read("damping", options.damping);
  section.check(options.violations());
}

SgdSolver::SgdSolver(SgdSolverOptions options) : options_(options) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("SgdSolver: {}.", fmt::join(violations, "; ")));
}

LinearResult SgdSolver::solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const {
  const System system(A, options_.damping, b, q0, "SgdSolver::solve");
  const at::Tensor s = step_scale(options_.scale, A, b, "SgdSolver::solve");
  return system.each(
      [&](const at::Tensor& right, const at::Tensor& start) { return solve_one(system, options_, s, right, start); });
}

}  // namespace bilevel
