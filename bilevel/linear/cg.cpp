// Conjugate gradients, Hestenes & Stiefel, J. Res. NBS 49 (1952), §3:
//
//   α = rᵀz / pᵀAp      q ← q + α p      r' = r − α A p      p ← z' + (r'ᵀz' / rᵀz) p      z = M⁻¹ r
//
// (M = I without a preconditioner)
// with the guards of Ceres Solver's conjugate gradients: a test of the curvature pᵀAp, and the true residual now and then.
#include "bilevel/linear/cg.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/linear/system.h"

namespace bilevel {
namespace {

struct Iterate {
  at::Tensor q, r;
  double residual = 1;  // ‖r‖, r = b − A q from q itself
  double energy = 0;    // ½ qᵀA q − bᵀq
  bool finite() const { return std::isfinite(residual) && std::isfinite(energy); }
};

Iterate zero(const System& system) { return {at::zeros_like(system.b()), system.b()}; }

/// q with its true residual; with it the energy costs no product: qᵀA q = qᵀ(b − r).
Iterate measure(const System& system, const at::Tensor& q) {
  Iterate at_q{q, system.residual(q)};
  const auto values = numbers({at_q.r.dot(at_q.r), q.dot(system.b()), q.dot(at_q.r)});
  at_q.residual = std::sqrt(values[0]);
  at_q.energy = -0.5 * (values[1] + values[2]);
  return at_q;
}

Iterate start(const System& system) {
  if (!system.q0().defined()) return zero(system);
  Iterate warm = measure(system, system.q0());
  const double curvature = 2 * (warm.energy + warm.q.dot(system.b()).item<double>());  // q0ᵀA q0
  return warm.finite() && warm.energy < 0 && curvature > 0 ? warm : zero(system);
}

/// Near the solution the energies of two iterates differ by rounding only and the residual decides; far from it the residual may
/// rise while the error falls.
bool worse(const Iterate& a, const Iterate& b) { return !a.finite() || (a.residual > b.residual && a.energy > b.energy); }

}  // namespace

std::vector<std::string> CgOptions::violations() const {
  std::vector<std::string> found;
  if (iterations < 1) found.push_back(fmt::format("iterations = {} must be at least 1", iterations));
  if (!(tolerance >= 0)) found.push_back(fmt::format("tolerance = {} must be at least 0", tolerance));
  if (!(damping >= 0 && std::isfinite(damping)))
    found.push_back(fmt::format("damping = {} must be finite and at least 0", damping));
  if (true_residual_every < 1) found.push_back(fmt::format("true_residual_every = {} must be at least 1", true_residual_every));
  return found;
}

void read(Section& section, CgOptions& options) {
  section.read("iterations", options.iterations);
  section.read("tolerance", options.tolerance);
  section.read("damping", options.damping);
  section.check(options.violations());
}

Cg::Cg(CgOptions options) : options_(options) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("Cg: {}.", fmt::join(violations, "; ")));
}

LinearResult Cg::solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const {
  require(A.symmetric, "Cg::solve: A is not symmetric; conjugate gradients need A = Aᵀ. Take dense, or neumann.");
  const System system(A, options_.damping, b, q0, "Cg::solve");
  if (auto trivial = system.trivial()) return *trivial;
  const double tolerance = std::max(options_.tolerance, system.epsilon());

  LinearResult result;
  Iterate best = start(system);
  const auto precondition = [&A](const at::Tensor& v) { return A.precondition ? A.precondition(v) : v; };
  at::Tensor q = best.q, r = best.r, p = precondition(r);
  at::Tensor rz = r.dot(p);
  bool measured = true;  // q is best.q, with its true residual
  double drifted = 0;    // the true residual where the recursive one was last found to be nothing but rounding
  result.status = best.residual <= tolerance ? Status::kConverged : Status::kIterationLimit;

  while (result.status == Status::kIterationLimit && result.iterations < options_.iterations) {
    const at::Tensor Ap = system.apply(p);
    const at::Tensor pAp = p.dot(Ap);
    const at::Tensor alpha = rz / pAp;
    at::Tensor r_new = r.addcmul(Ap, -alpha);
    at::Tensor rr_new = r_new.dot(r_new);
    const auto values = numbers({pAp, rr_new});
    if (std::isnan(values[0])) {
      result.status = Status::kNonFinite;
      result.message = fmt::format("The product of iteration {} is not finite.", result.iterations + 1);
      break;
    }
    if (values[0] <= 0) {
      result.status = Status::kIndefinite;
      result.message = fmt::format("The curvature of iteration {} is {:.3g}, not positive; damping would help.",
                                   result.iterations + 1, values[0]);
      break;
    }
    if (!std::isfinite(values[1])) {
      result.status = Status::kNonFinite;
      result.message = fmt::format("The residual of iteration {} is not finite.", result.iterations + 1);
      break;
    }
    q = q.addcmul(p, alpha);
    measured = false;
    double residual = std::sqrt(values[1]);
    bool restart = false;
    ++result.iterations;

    if (residual <= tolerance || result.iterations % options_.true_residual_every == 0) {
      Iterate now = measure(system, q);
      if (!now.finite()) {
        result.status = Status::kNonFinite;
        result.message = fmt::format("The residual after iteration {} is not finite.", result.iterations);
        break;
      }
      const double drift = at::linalg_vector_norm(now.r - r_new).item<double>();
      r_new = now.r;
      rr_new = r_new.dot(r_new);
      residual = now.residual;
      if (!worse(now, best)) {
        best = std::move(now);
        measured = true;
      }
      if (residual <= tolerance) {
        result.status = Status::kConverged;
      } else if (drift > 0.5 * residual) {
        // The recursion no longer knows the residual: go on from the true one, as long as that helps.
        if (drifted > 0 && residual > 0.5 * drifted) {
          result.message =
              fmt::format("The residual stopped falling at {:.3g}, the rounding of {}.", residual, toString(b.scalar_type()));
        }
        drifted = residual;
        restart = true;
      }
    }
    result.history.push_back(residual);
    if (!result.message.empty()) break;
    // The direction must be built from the NEW residual; with the old one CG stalls at a few per cent error and still looks
    // plausible (a defect found in two published libraries).
    const at::Tensor z_new = precondition(r_new);
    const at::Tensor rz_new = A.precondition ? r_new.dot(z_new) : rr_new;
    p = restart ? z_new : z_new.addcmul(p, rz_new / rz);
    r = r_new;
    rz = rz_new;
  }

  if (!measured) {
    Iterate last = measure(system, q);
    if (!worse(last, best)) best = std::move(last);
  }
  if (result.status == Status::kIterationLimit && best.residual <= tolerance) result.status = Status::kConverged;
  if (result.message.empty()) {
    result.message =
        result.status == Status::kConverged
            ? fmt::format("Converged in {} iterations to a relative residual of {:.3g}.", result.iterations, best.residual)
            : fmt::format("Did {} iterations, to a relative residual of {:.3g}.", result.iterations, best.residual);
  }
  result.solution = system.unscaled(best.q);
  result.relative_residual = best.residual;
  return result;
}

}  // namespace bilevel
