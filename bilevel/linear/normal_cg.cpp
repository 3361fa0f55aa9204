// CGLS (Björck, Numerical Methods for Least Squares Problems, 1996, Algorithm 7.4.1):
//
//   α = ‖z‖² / ‖A p‖²      q ← q + α p      r' = r − α A p      z' = Aᵀ r'      p ← z' + (‖z'‖² / ‖z‖²) p
#include "bilevel/linear/normal_cg.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/linear/best_iterate.h"

namespace bilevel {
namespace {

LinearResult solve_one(const System& system, const NormalCgOptions& options, const at::Tensor& b, const at::Tensor& q0) {
  const double tolerance = std::max(options.tolerance, system.epsilon());
  BestIterate best(system, b, q0);
  LinearResult& result = best.result;
  at::Tensor q = best.q().clone(), r = best.start();
  at::Tensor z = system.apply_transposed(r).clone(), p = z.clone();
  double zz = numbers(z.dot(z))[0];
  double length_of_A = 0;  // a lower bound of ‖A‖, from the directions seen
  double drifted = 0;      // the true residual where the recursive one was last found to be nothing but rounding
  bool measured = true;

  while (best.residual() > tolerance && result.iterations < options.iterations) {
    if (!std::isfinite(zz)) {
      result.status = Status::kNonFinite;
      result.message = fmt::format("The product of iteration {} is not finite.", result.iterations + 1);
      break;
    }
    const at::Tensor Ap = system.apply(p);
    const auto lengths = numbers({Ap.dot(Ap), p.dot(p), r.dot(r)});
    if (!std::isfinite(lengths[0])) {
      result.status = Status::kNonFinite;
      result.message = fmt::format("The product of iteration {} is not finite.", result.iterations + 1);
      break;
    }
    if (lengths[1] > 0) length_of_A = std::max(length_of_A, std::sqrt(lengths[0] / lengths[1]));
    // Aᵀr = 0 with r ≠ 0: no q has a smaller residual.
    const double floor = 10 * system.epsilon() * length_of_A;
    if (lengths[0] == 0 || std::sqrt(zz) <= floor * std::sqrt(lengths[2])) {
      result.status = Status::kSingular;
      result.message =
          fmt::format("A is singular: b is not in its range, and no q leaves less than {:.3g}.", std::sqrt(lengths[2]));
      break;
    }
    const double alpha = zz / lengths[0];
    q.add_(p, alpha);
    r.sub_(Ap, alpha);
    measured = false;
    ++result.iterations;
    double residual = at::linalg_vector_norm(r).item<double>();
    bool restart = false;
    if (!(residual > tolerance) || result.iterations % options.true_residual_every == 0) {
      const at::Tensor now = b - system.apply(q);
      const double drift = at::linalg_vector_norm(now - r).item<double>();
      r = now;
      residual = at::linalg_vector_norm(r).item<double>();
      best.offer(q, residual, true);
      measured = true;
      if (!std::isfinite(residual)) {
        result.status = Status::kNonFinite;
        result.message = fmt::format("The residual after iteration {} is not finite.", result.iterations);
        break;
      }
      if (residual > tolerance && drift > 0.5 * residual) {
        if (drifted > 0 && residual > 0.5 * drifted) {
          result.message = system.stopped_by_rounding(residual);
          result.history.push_back(residual);
          break;
        }
        drifted = residual;
        restart = true;
      }
    }
    result.history.push_back(residual);
    z = system.apply_transposed(r);
    const double zz_new = numbers(z.dot(z))[0];
    p = restart ? z.clone() : p.mul_(zz_new / zz).add_(z);
    zz = zz_new;
  }
  if (!measured) best.offer(q, at::linalg_vector_norm(b - system.apply(q)).item<double>(), true);
  return best.finish(tolerance);
}

}  // namespace

std::vector<std::string> NormalCgOptions::violations() const {
  std::vector<std::string> found;
  check_common(iterations, 1, tolerance, damping, found);
  if (true_residual_every < 1) found.push_back(fmt::format("true_residual_every = {} must be at least 1", true_residual_every));
  return found;
}

void read(Section& section, NormalCgOptions& options) {
  section.read("iterations", options.iterations);
  section.read("tolerance", options.tolerance);
  section.read("damping", options.damping);
  section.check(options.violations());
}

NormalCg::NormalCg(NormalCgOptions options) : options_(options) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("NormalCg: {}.", fmt::join(violations, "; ")));
}

LinearResult NormalCg::solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const {
  require(A.symmetric || A.apply_transposed,
          "NormalCg::solve: A is not symmetric and A.apply_transposed is empty; give the product Aᵀ v, or take gmres.");
  const System system(A, options_.damping, b, q0, "NormalCg::solve");
  return system.each([&](const at::Tensor& right, const at::Tensor& start) { return solve_one(system, options_, right, start); });
}

}  // namespace bilevel
