// GMRES(m), Saad & Schultz, SIAM J. Sci. Stat. Comput. 7 (1986), Algorithm 4, with Givens rotations (§3.2):
//
//   A V_j = V_{j+1} H_j      q = q0 + V_j y      y = argmin ‖ ‖r0‖ e_1 − H_j y ‖
//
// Gram–Schmidt twice (Giraud, Langou & Rozložník 2005): one pass, modified or not, loses the orthogonality of V as κ(A) grows,
// two keep it to rounding. Each pass is two products with V.
#include "bilevel/linear/gmres.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/linear/best_iterate.h"

namespace bilevel {
namespace {

/// The least-squares problem with the Hessenberg matrix H, column by column.
class Hessenberg {
 public:
  explicit Hessenberg(double length) : g_{length} {}

  /// Adds the column h_{0…j}, and `below` = h_{j+1,j}.
  void add(std::vector<double> h, double below) {
    const size_t j = columns_.size();
    for (size_t i = 0; i < j; ++i) {
      const double upper = c_[i] * h[i] + s_[i] * h[i + 1];
      h[i + 1] = -s_[i] * h[i] + c_[i] * h[i + 1];
      h[i] = upper;
    }
    const double length = std::hypot(h[j], below);
    c_.push_back(length > 0 ? h[j] / length : 1);
    s_.push_back(length > 0 ? below / length : 0);
    h[j] = length;
    g_.push_back(-s_[j] * g_[j]);
    g_[j] *= c_[j];
    largest_ = std::max(largest_, length);
    columns_.push_back(std::move(h));
  }

  double residual() const { return std::abs(g_.back()); }
  /// The last pivot is rounding, beside the largest: H, and with it A, is singular.
  bool singular(double epsilon) const { return !(columns_.back().back() > epsilon * largest_); }
  void drop_last() {
    columns_.pop_back();
    g_.pop_back();
  }

  std::vector<double> solve() const {
    std::vector<double> y(columns_.size());
    for (size_t i = y.size(); i-- > 0;) {
      y[i] = g_[i];
      for (size_t j = i + 1; j < y.size(); ++j) y[i] -= columns_[j][i] * y[j];
      y[i] /= columns_[i][i];
    }
    return y;
  }

 private:
  std::vector<std::vector<double>> columns_;  // of the triangle
  std::vector<double> c_, s_, g_;
  double largest_ = 0;
};

/// A cycle from q with residual r = b − A q; q is moved.
void cycle(const System& system, const GmresOptions& options, double tolerance, at::Tensor& q, const at::Tensor& r, double length,
           LinearResult& result) {
  const int64_t steps = std::min({options.restart, options.iterations - result.iterations, r.size(0)});
  at::Tensor V = at::empty({steps + 1, r.size(0)}, r.options());
  V[0].copy_(r / length);
  Hessenberg H(length);
  int64_t used = 0;
  for (int64_t j = 0; j < steps; ++j) {
    at::Tensor w = system.apply(V[j]).clone();
    const double before = at::linalg_vector_norm(w).item<double>();
    if (!std::isfinite(before)) {
      result.status = Status::kNonFinite;
      result.message = fmt::format("The product of iteration {} is not finite.", result.iterations + 1);
      break;
    }
    const at::Tensor basis = V.narrow(0, 0, j + 1);
    at::Tensor h = basis.mv(w);
    w.sub_(basis.t().mv(h));
    const at::Tensor again = basis.mv(w);
    w.sub_(basis.t().mv(again));
    h = h + again;
    const double below = at::linalg_vector_norm(w).item<double>();
    ++result.iterations;
    ++used;
    const bool closed = below <= 10 * system.epsilon() * before;  // the space is invariant: nothing is left to add
    H.add(numbers(h), closed ? 0.0 : below);
    const bool singular = closed && H.singular(100 * static_cast<double>(j + 1) * system.epsilon());
    if (singular) {
      H.drop_last();
      --used;
      result.status = Status::kSingular;
      result.message = "A is singular: the Krylov space of b is closed, and its best point leaves a residual.";
    }
    result.history.push_back(H.residual());
    if (singular || closed || H.residual() <= tolerance) break;
    V[j + 1].copy_(w / below);
  }
  if (used == 0) return;
  const at::Tensor y = at::tensor(H.solve(), at::kDouble).to(r.options());
  q.add_(V.narrow(0, 0, used).t().mv(y));
}

LinearResult solve_one(const System& system, const GmresOptions& options, const at::Tensor& b, const at::Tensor& q0) {
  const double tolerance = std::max(options.tolerance, system.epsilon());
  BestIterate best(system, b, q0);
  LinearResult& result = best.result;
  at::Tensor q = best.q().clone(), r = best.start();
  double residual = best.residual();
  while (residual > tolerance && result.iterations < options.iterations && !failed(result.status)) {
    cycle(system, options, tolerance, q, r, residual, result);
    // Where the products have become NaN the recursion's residual is all that is known of q.
    if (result.status == Status::kNonFinite && !result.history.empty()) best.offer(q, result.history.back(), false);
    r = b - system.apply(q);
    const double before = residual;
    residual = at::linalg_vector_norm(r).item<double>();
    best.offer(q, residual, true);
    if (!result.history.empty() && std::isfinite(residual)) result.history.back() = residual;  // the true one
    if (failed(result.status) || residual <= tolerance || result.iterations >= options.iterations) continue;
    if (!(residual < 0.999 * before)) {
      result.message = residual < 1e3 * system.epsilon()
                           ? system.stopped_by_rounding(residual)
                           : fmt::format(
                                 "A cycle of {} products gained nothing at a relative residual of {:.3g}; a larger "
                                 "`restart` would help, unless A is singular.",
                                 options.restart, residual);
      break;
    }
  }
  if (result.status == Status::kSingular && best.residual() <= tolerance) {  // b is in the range of A after all
    result.status = Status::kIterationLimit;
    result.message.clear();
  }
  return best.finish(tolerance);
}

}  // namespace

std::vector<std::string> GmresOptions::violations() const {
  std::vector<std::string> found;
  check_common(iterations, 1, tolerance, damping, found);
  if (restart < 1) found.push_back(fmt::format("restart = {} must be at least 1", restart));
  return found;
}

void read(Section& section, GmresOptions& options) {
  section.read("iterations", options.iterations);
  section.read("restart", options.restart);
  section.read("tolerance", options.tolerance);
  section.read("damping", options.damping);
  section.check(options.violations());
}

Gmres::Gmres(GmresOptions options) : options_(options) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("Gmres: {}.", fmt::join(violations, "; ")));
}

LinearResult Gmres::solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const {
  const System system(A, options_.damping, b, q0, "Gmres::solve");
  return system.each([&](const at::Tensor& right, const at::Tensor& start) { return solve_one(system, options_, right, start); });
}

}  // namespace bilevel
