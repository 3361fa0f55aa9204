// MINRES, Paige & Saunders, SIAM J. Numer. Anal. 12 (1975), in the form of their program of 1995. Lanczos with M:
//
//   v = z / β      u' = A v − (β / β_) u_ − (α / β) u,  α = vᵀA v      z' = M⁻¹ u'      β' = (u'ᵀz')^{1/2}
//
// makes the tridiagonal matrix of α and β; its QR decomposition by rotations (c, s) gives the direction w and the step φ:
//
//   δ = c d̄ + s α      ḡ = s d̄ − c α      ε' = s β'      d̄' = −c β'      γ = (ḡ² + β'²)^{1/2}
//   c' = ḡ / γ         s' = β' / γ        φ = c' φ̄       φ̄' = s' φ̄
//   w' = (v − ε w_ − δ w) / γ             q ← q + φ w'    and φ̄' is the residual
#include "bilevel/linear/minres.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/linear/system.h"

namespace bilevel {
namespace {

/// One right-hand side, with the scalars of its recursion.
struct MinresRow {
  size_t index = 0;  // among the rows of the system
  double beta = 0, beta_before = 0, c = -1, s = 0, d_bar = 0, epsilon = 0, phi_bar = 0;
  double delta = 0, gamma = 1, phi = 0, epsilon_before = 0;  // of this iteration
  double largest = 0;                                        // a lower bound of ‖A‖ (of M^{-1/2} A M^{-1/2})
  double best = 1;                                           // true residual of its row of best_
  double unit = 1;                                           // true residual / φ̄ where the recursion began: 1 without M
  double target = 0;                                         // estimate of the residual at which to look at the true one
  double drifted = 0;    // the true residual where the recursive one was last found to be nothing but rounding
  bool crooked = false;  // rᵀM⁻¹r < 0
  bool fresh = true;     // no Lanczos vector but the first
  bool closed = false;   // the Krylov space is invariant
  bool measured = true;
  std::vector<double> diagonal, squares;  // Lanczos' matrix, for the Ritz values
  LinearResult result;
};

class MinimalResiduals {
 public:
  MinimalResiduals(const System& system, const MinresOptions& options)
      : system_(system),
        options_(options),
        tolerance_(std::max(options.tolerance, system.epsilon())),
        precondition_(make_preconditioner(system.A(), system.damping(), system.b(), options.preconditioner)) {}

  std::vector<LinearResult> run() {
    start();
    while (!rows_.empty() && iteration_ < options_.iterations) iterate();
    end(std::vector<bool>(rows_.size(), true));
    return std::move(results_);
  }

 private:
  template <class Of>
  at::Tensor column(Of of) const {
    std::vector<double> values;
    for (const MinresRow& row : rows_) values.push_back(of(row));
    return at::tensor(values, at::kDouble).to(b_.options()).unsqueeze(1);
  }

  at::Tensor preconditioned(const at::Tensor& r) const {
    if (!precondition_) return r.clone();
    return r.size(0) == 1 ? precondition_(r[0]).unsqueeze(0).clone() : precondition_(r).clone();
  }

  void start() {
    const auto k = static_cast<size_t>(system_.rows());
    results_.resize(k);
    rows_.resize(k);
    b_ = system_.b();
    const System::Start start = system_.start();
    q_ = start.q;
    u_ = start.r;
    for (size_t i = 0; i < k; ++i) {
      rows_[i].index = i;
      rows_[i].best = start.residuals[i];
    }
    best_ = q_.clone();
    w_ = at::zeros_like(b_);
    w_before_ = at::zeros_like(b_);
    u_before_ = at::zeros_like(b_);
    std::vector<bool> done;
    for (const MinresRow& row : rows_) done.push_back(row.best <= tolerance_);
    end(done);
    if (rows_.empty()) return;
    z_ = preconditioned(u_);
    const auto uz = numbers(row_dots(u_, z_));
    for (size_t i = 0; i < rows_.size(); ++i) begin(rows_[i], rows_[i].best, uz[i]);
  }

  /// The recursion of a row begins with its row of u_ as the residual, of that length; uz = uᵀz.
  void begin(MinresRow& row, double length, double uz) const {
    row.beta = row.phi_bar = std::sqrt(uz);
    row.beta_before = row.s = row.d_bar = row.epsilon = 0;
    row.c = -1;
    row.crooked = uz < 0;
    row.unit = precondition_ && uz > 0 ? length / row.beta : 1;
    row.target = tolerance_;
    row.fresh = true;
    if (!row.squares.empty()) row.squares.back() = 0;  // a new block of Lanczos' matrix
  }

  void iterate() {
    const at::Tensor v = z_ * column([](const MinresRow& row) { return 1 / row.beta; });
    at::Tensor u = system_.apply(v).clone();
    u.addcmul_(u_before_, column([](const MinresRow& row) { return row.fresh ? 0.0 : -row.beta / row.beta_before; }));
    const auto alpha = numbers(row_dots(v, u));
    size_t next = 0;
    u.addcmul_(u_, column([&](const MinresRow& row) { return -alpha[next++] / row.beta; }));
    u_before_ = u_;
    u_ = u;
    z_ = preconditioned(u_);
    const auto uz = numbers(row_dots(u_, z_));

    const size_t k = rows_.size();
    std::vector<bool> done(k, false);
    for (size_t i = 0; i < k; ++i) done[i] = rotate(rows_[i], alpha[i], uz[i]);
    const at::Tensor w = (v - column([](const MinresRow& row) { return row.epsilon_before; }) * w_before_ -
                          column([](const MinresRow& row) { return row.delta; }) * w_) *
                         column([](const MinresRow& row) { return 1 / row.gamma; });
    w_before_ = w_;
    w_ = w;
    ++iteration_;
    bool look = iteration_ % options_.true_residual_every == 0;
    for (size_t i = 0; i < k; ++i) {
      MinresRow& row = rows_[i];
      if (failed(row.result.status)) continue;
      const auto at = static_cast<int64_t>(i);
      q_[at].add_(w_[at], row.phi);
      row.measured = false;
      row.result.iterations = iteration_;
      // With M the recursion knows the residual in the norm of M⁻¹ only, so this is an estimate.
      const double estimate = row.unit * row.phi_bar;
      row.result.history.push_back(estimate);
      look = look || row.closed || estimate <= row.target;
    }
    if (look) look_at_the_true_residual(done);
    end(done);
  }

  /// The rotation of this iteration. True where the row has failed.
  bool rotate(MinresRow& row, double alpha, double uz) {
    const double epsilon = system_.epsilon();
    row.crooked = row.crooked || uz < -epsilon;
    if (!std::isfinite(alpha) || !std::isfinite(uz) || row.crooked) {
      row.result.status = row.crooked ? Status::kIndefinite : Status::kNonFinite;
      row.result.message =
          row.crooked ? fmt::format("The preconditioner is not positive definite, as iteration {} shows.", iteration_ + 1)
                      : fmt::format("The product of iteration {} is not finite.", iteration_ + 1);
      row.gamma = 1;
      return true;
    }
    row.diagonal.push_back(alpha);
    row.squares.push_back(uz);
    row.beta_before = row.beta;
    row.beta = std::sqrt(std::max(uz, 0.0));
    row.largest = std::max({row.largest, std::hypot(alpha, row.beta), std::abs(alpha)});
    row.closed = row.beta <= 10 * epsilon * row.largest;
    row.fresh = false;
    row.epsilon_before = row.epsilon;
    row.delta = row.c * row.d_bar + row.s * alpha;
    const double g_bar = row.s * row.d_bar - row.c * alpha;
    row.epsilon = row.s * row.beta;
    row.d_bar = -row.c * row.beta;
    row.gamma = std::hypot(g_bar, row.beta);
    // ‖A r‖ = φ̄ (ḡ² + d̄²)^{1/2}: zero at a least-squares solution that is no solution, but for what rounding makes of it, which
    // is hundreds of ε where some eigenvalues are close. A step beyond would follow A's rounding.
    const double nothing = std::min(1e3 * epsilon, 1e-6) * row.largest;
    if (std::hypot(g_bar, row.d_bar) <= nothing || row.gamma <= 2 * epsilon * row.largest) {
      row.result.status = Status::kSingular;
      row.result.message =
          fmt::format("A is singular, or nearly: b is not in its range, and no q leaves much less than {:.3g}.", row.phi_bar);
      row.gamma = 1;
      return true;
    }
    row.c = g_bar / row.gamma;
    row.s = row.beta / row.gamma;
    row.phi = row.c * row.phi_bar;
    row.phi_bar *= row.s;
    return false;
  }

  void look_at_the_true_residual(std::vector<bool>& done) {
    const at::Tensor r = b_ - system_.apply(q_);
    const auto residuals = numbers(at::linalg_vector_norm(r, 2, {1}));
    const at::Tensor z = preconditioned(r);
    const auto uz = numbers(row_dots(r, z));
    std::vector<size_t> anew;
    for (size_t i = 0; i < rows_.size(); ++i) {
      MinresRow& row = rows_[i];
      if (done[i]) continue;
      if (!std::isfinite(residuals[i])) {
        row.result.status = Status::kNonFinite;
        row.result.message = fmt::format("The residual after iteration {} is not finite.", iteration_);
        row.result.history.pop_back();
        row.measured = done[i] = true;
        continue;
      }
      row.result.history.back() = residuals[i];
      keep(row, i, residuals[i]);
      if (residuals[i] <= tolerance_) {
        done[i] = true;
      } else if (row.closed || std::sqrt(uz[i]) > 2 * row.phi_bar) {
        // The recursion no longer knows the residual: go on from the true one, as long as that helps.
        if (row.drifted > 0 && residuals[i] > 0.5 * row.drifted) {
          row.result.message = system_.stopped_by_rounding(residuals[i]);
          done[i] = true;
        }
        row.drifted = residuals[i];
        anew.push_back(i);
      } else {
        row.target = std::min(row.target, 0.99 * row.unit * row.phi_bar * std::min(1.0, tolerance_ / residuals[i]));
      }
    }
    for (const size_t i : anew) {
      const auto at = static_cast<int64_t>(i);
      u_[at].copy_(r[at]);
      z_[at].copy_(z[at]);
      w_[at].zero_();
      w_before_[at].zero_();
      begin(rows_[i], residuals[i], uz[i]);
    }
  }

  void keep(MinresRow& row, size_t i, double residual) {
    row.measured = true;
    if (!(residual <= row.best)) return;
    row.best = residual;
    best_[static_cast<int64_t>(i)].copy_(q_[static_cast<int64_t>(i)]);
  }

  /// Takes the rows that are done out of the iteration.
  void end(const std::vector<bool>& done) {
    std::vector<int64_t> left, unmeasured;
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (!done[i]) left.push_back(static_cast<int64_t>(i));
      if (done[i] && !rows_[i].measured) unmeasured.push_back(static_cast<int64_t>(i));
    }
    if (left.size() == rows_.size()) return;
    if (!unmeasured.empty()) {
      at::Tensor q = q_, b = b_;
      keep_rows(unmeasured, {&q, &b});
      const auto residuals = numbers(at::linalg_vector_norm(b - system_.apply(q), 2, {1}));
      for (size_t j = 0; j < unmeasured.size(); ++j) {
        const auto i = static_cast<size_t>(unmeasured[j]);
        keep(rows_[i], i, residuals[j]);
      }
    }
    std::vector<MinresRow> going;
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (done[i]) {
        finish(rows_[i], static_cast<int64_t>(i));
      } else {
        going.push_back(std::move(rows_[i]));
      }
    }
    rows_ = std::move(going);
    keep_rows(left, {&b_, &q_, &best_, &u_, &u_before_, &z_, &w_, &w_before_});
  }

  void finish(MinresRow& row, int64_t i) {
    LinearResult& result = row.result;
    if (row.best <= tolerance_ && result.status != Status::kNonFinite) {
      result.status = Status::kConverged;
      result.message.clear();
    }
    result.relative_residual = row.best;
    result.solution = best_[i].clone();
    describe(result);
    // With M they would be Ritz values of M⁻¹A.
    if (!precondition_ && !row.diagonal.empty()) result.smallest_curvature = smallest_eigenvalue(row.diagonal, row.squares);
    results_[row.index] = std::move(result);
  }

  const System& system_;
  const MinresOptions& options_;
  const double tolerance_;
  const std::function<at::Tensor(const at::Tensor&)> precondition_;
  int64_t iteration_ = 0;
  std::vector<MinresRow> rows_;  // those that go on, and their vectors [rows, d]
  at::Tensor b_, q_, best_, u_, u_before_, z_, w_, w_before_;
  std::vector<LinearResult> results_;  // by index
};

}  // namespace

std::vector<std::string> MinresOptions::violations() const {
  std::vector<std::string> found = preconditioner.violations();
  check_common(iterations, 1, tolerance, damping, found);
  if (true_residual_every < 1) found.push_back(fmt::format("true_residual_every = {} must be at least 1", true_residual_every));
  return found;
}

void read(Section& section, MinresOptions& options) {
  section.read("iterations", options.iterations);
  section.read("tolerance", options.tolerance);
  section.read("damping", options.damping);
  read(section, options.preconditioner);
  section.check(options.violations());
}

Minres::Minres(MinresOptions options) : options_(std::move(options)) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("Minres: {}.", fmt::join(violations, "; ")));
}

LinearResult Minres::solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const {
  require(A.symmetric, "Minres::solve: A is not symmetric; minimal residuals need A = Aᵀ. Take gmres, bicgstab or normal-cg.");
  const System system(A, options_.damping, b, q0, "Minres::solve");
  if (system.rows() == 0) return system.result({});
  return system.result(MinimalResiduals(system, options_).run());
}

}  // namespace bilevel
