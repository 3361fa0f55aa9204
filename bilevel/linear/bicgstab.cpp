// BiCGSTAB, van der Vorst, SIAM J. Sci. Stat. Comput. 13 (1992), with a fixed shadow residual r̂:
//
//   ρ = r̂ᵀr      p ← r + (ρ α / ρ_ ω)(p − ω v)      v = A p      α = ρ / r̂ᵀv      s = r − α v
//   t = A s      ω = tᵀs / tᵀt                      q ← q + α p + ω s             r ← s − ω t
#include "bilevel/linear/bicgstab.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"
#include "bilevel/linear/best_iterate.h"

namespace bilevel {
namespace {

class Bicg {
 public:
  Bicg(const System& system, const BicgstabOptions& options, const at::Tensor& b, const at::Tensor& q0)
      : system_(system),
        options_(options),
        tolerance_(std::max(options.tolerance, system.epsilon())),
        b_(b),
        best_(system, b, q0),
        q_(best_.q().clone()),
        r_(best_.start()),
        residual_(best_.residual()) {}

  LinearResult run() {
    restart();
    while (going()) {
      if (!sweep() || !going()) break;
      if (best_.result.iterations >= next_look_) look();
    }
    // A recursion that claims the tolerance has to show it.
    if (!failed(best_.result.status) && best_.result.message.empty() && residual_ <= tolerance_ && !exact_) {
      look();
      if (going()) return run();
    }
    return best_.finish(tolerance_);
  }

 private:
  bool going() const {
    return residual_ > tolerance_ && best_.result.iterations < options_.iterations && !failed(best_.result.status) &&
           best_.result.message.empty();
  }

  void restart() {
    shadow_ = r_.clone();
    p_ = r_.clone();
    rho_ = residual_ * residual_;
    at_restart_ = residual_;
    next_look_ = best_.result.iterations + options_.true_residual_every;
  }

  /// Begins anew from the true residual where a denominator vanished. False where that was tried and gained nothing.
  bool recover(std::string_view what) {
    if (!(residual_ < 0.99 * at_restart_)) {
      best_.result.status = Status::kSingular;
      best_.result.message = fmt::format(
          "The recursion broke down at iteration {}: {} vanished, as it does for a singular or "
          "skew-symmetric A; gmres has no such division.",
          best_.result.iterations, what);
      return false;
    }
    look();
    restart();
    return true;
  }

  /// The true residual takes the place of the recursive one.
  void look() {
    const at::Tensor now = b_ - system_.apply(q_);
    const double residual = at::linalg_vector_norm(now).item<double>();
    const double drift = at::linalg_vector_norm(now - r_).item<double>();
    best_.offer(q_, residual, true);
    r_ = now;
    residual_ = residual;
    exact_ = true;
    next_look_ = best_.result.iterations + options_.true_residual_every;
    if (!std::isfinite(residual)) {
      non_finite("residual");
    } else if (residual > tolerance_ && drift > 0.5 * residual) {
      if (drifted_ > 0 && residual > 0.5 * drifted_) best_.result.message = system_.stopped_by_rounding(residual);
      drifted_ = residual;
      restart();
    }
  }

  void non_finite(std::string_view what) {
    best_.result.status = Status::kNonFinite;
    best_.result.message = fmt::format("The {} of iteration {} is not finite.", what, best_.result.iterations + 1);
  }

  /// q and r have moved by one product.
  bool moved() {
    ++best_.result.iterations;
    exact_ = false;
    residual_ = at::linalg_vector_norm(r_).item<double>();
    if (!std::isfinite(residual_)) {
      non_finite("residual");
      return false;
    }
    best_.result.history.push_back(residual_);
    best_.offer(q_, residual_, false);
    return true;
  }

  /// Two products, the second only where it is needed. False where the solve is over.
  bool sweep() {
    const double tiny = 10 * system_.epsilon();
    const at::Tensor v = system_.apply(p_);
    const auto with_v = numbers({shadow_.dot(v), v.dot(v), shadow_.dot(shadow_)});
    if (!std::isfinite(with_v[1])) {
      non_finite("product");
      return false;
    }
    if (!(std::abs(with_v[0]) > tiny * std::sqrt(with_v[1] * with_v[2]))) return recover("r̂ᵀA p");
    const double alpha = rho_ / with_v[0];
    q_.add_(p_, alpha);
    r_.sub_(v, alpha);
    if (!moved() || !going()) return false;

    const at::Tensor t = system_.apply(r_);
    const auto with_t = numbers({t.dot(r_), t.dot(t)});
    if (!std::isfinite(with_t[1])) {
      non_finite("product");
      return false;
    }
    if (!(std::abs(with_t[0]) > tiny * residual_ * std::sqrt(with_t[1]))) return recover("tᵀs");
    const double omega = with_t[0] / with_t[1];
    const at::Tensor ts = t.data_ptr() == r_.data_ptr() ? t.clone() : t;  // the identity may give r itself back
    q_.add_(r_, omega);
    r_.sub_(ts, omega);
    if (!moved() || !going()) return false;

    const double rho = dot_of(shadow_, r_);
    if (!(std::abs(rho) > tiny * residual_ * std::sqrt(with_v[2]))) return recover("r̂ᵀr");
    const double beta = (rho / rho_) * (alpha / omega);
    p_ = r_ + beta * (p_ - omega * v);
    rho_ = rho;
    return true;
  }

  const System& system_;
  const BicgstabOptions& options_;
  const double tolerance_;
  const at::Tensor b_;
  BestIterate best_;
  at::Tensor q_, r_, p_, shadow_;
  double residual_, rho_ = 0;
  bool exact_ = true;      // residual_ is that of q_ itself
  double at_restart_ = 1;  // the residual where the recursion began
  double drifted_ = 0;     // the true residual where the recursive one was last found to be nothing but rounding
  int64_t next_look_ = 0;
};

}  // namespace

std::vector<std::string> BicgstabOptions::violations() const {
  std::vector<std::string> found;
  check_common(iterations, 1, tolerance, damping, found);
  if (true_residual_every < 1) found.push_back(fmt::format("true_residual_every = {} must be at least 1", true_residual_every));
  return found;
}

void read(Section& section, BicgstabOptions& options) {
  section.read("iterations", options.iterations);
  section.read("tolerance", options.tolerance);
  section.read("damping", options.damping);
  section.check(options.violations());
}

Bicgstab::Bicgstab(BicgstabOptions options) : options_(options) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("Bicgstab: {}.", fmt::join(violations, "; ")));
}

LinearResult Bicgstab::solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const {
  const System system(A, options_.damping, b, q0, "Bicgstab::solve");
  return system.each(
      [&](const at::Tensor& right, const at::Tensor& start) { return Bicg(system, options_, right, start).run(); });
}

}  // namespace bilevel
