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

double length(const at::Tensor& v) { return at::linalg_vector_norm(v).item<double>(); }

at::Tensor scale_for(const NeumannOptions& options, const Operator& A, const at::Tensor& b) {
  if (options.scale > 0) return at::full({}, options.scale, b.options());
  const at::Tensor& s = A.step_size;
  require(s.defined(), "Neumann::solve: no scale is known; give `scale` > 0, below 2 / (largest eigenvalue of A).");
  require(s.dim() == 0 || s.sizes() == b.sizes(),
          fmt::format("Neumann::solve: A.step_size has shape [{}], expected a scalar or [{}].", fmt::join(s.sizes(), ", "),
                      b.size(0)));
  require((s > 0).all().item<bool>(),
          "Neumann::solve: A.step_size is not positive; it must be, and below 2 / (largest eigenvalue of A).");
  return s.detach().to(b.options());
}

}  // namespace

std::vector<std::string> NeumannOptions::violations() const {
  std::vector<std::string> found;
  if (iterations < 0) found.push_back(fmt::format("iterations = {} must be at least 0", iterations));
  if (!(tolerance >= 0)) found.push_back(fmt::format("tolerance = {} must be at least 0", tolerance));
  if (!(damping >= 0 && std::isfinite(damping)))
    found.push_back(fmt::format("damping = {} must be finite and at least 0", damping));
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
  if (auto trivial = system.trivial()) return *trivial;
  const at::Tensor s = scale_for(options_, A, b);
  // For a symmetric A and a scalar s, ‖r_k‖² = Σ c_i² (1 − s λ_i)^{2k} is log-convex in k: once it rises it rises for ever, and
  // what is allowed is for rounding only. Otherwise ‖r_k‖ may rise for a while and still settle.
  const double growth = A.symmetric && s.dim() == 0 ? 1.001 : 100.0;

  LinearResult result;
  at::Tensor q = at::zeros_like(system.b()), r = system.b();
  double residual = 1;
  if (system.q0().defined()) {
    at::Tensor r0 = system.residual(system.q0());
    const double residual0 = length(r0);
    if (residual0 < 1) {  // false for NaN
      q = system.q0();
      r = std::move(r0);
      residual = residual0;
    }
  }
  at::Tensor best = q;
  double lowest = residual;

  while (residual > options_.tolerance) {
    const at::Tensor term = s * r;
    q = q + term;
    const bool last = result.iterations == options_.iterations;
    // The last residual judges the solution and moves nothing: it is computed from the solution itself, and not counted.
    r = last ? system.residual(q) : r - system.apply(term);
    residual = length(r);
    if (!std::isfinite(residual)) {
      result.status = Status::kNonFinite;
      result.message = fmt::format("The residual of term {} is not finite.", result.iterations + 1);
      break;
    }
    result.history.push_back(residual);
    if (residual > growth * lowest) {
      result.status = Status::kDiverged;
      result.message = fmt::format(
          "The series diverges at term {}: the scale must be below 2 / (largest eigenvalue of A) and A positive definite.",
          result.iterations + 1);
      break;
    }
    if (residual < lowest) {
      best = q;
      lowest = residual;
    }
    if (last) break;
    ++result.iterations;
  }

  if (!failed(result.status)) {
    best = q;
    if (result.iterations < options_.iterations) residual = length(system.residual(q));
    if (residual <= options_.tolerance) result.status = Status::kConverged;
    result.message = fmt::format("Summed to {} products, to a relative residual of {:.3g}.", result.iterations, residual);
  } else {
    residual = length(system.residual(best));
    if (!std::isfinite(residual)) residual = lowest;  // an operator that has become NaN on the way
  }
  result.solution = system.unscaled(best);
  result.relative_residual = residual;
  return result;
}

}  // namespace bilevel
