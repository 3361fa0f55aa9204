// Conjugate gradients, Hestenes & Stiefel, J. Res. NBS 49 (1952), §3:
//
//   α = rᵀz / pᵀAp      q ← q + α p      r' = r − α A p      p ← z' + β p, β = r'ᵀz' / rᵀz      z = M⁻¹ r
//
// (M = I without a preconditioner)
// with the guards of Ceres Solver's conjugate gradients: a test of the curvature pᵀAp, and the true residual now and then.
//
// Without M, α and β are Lanczos' tridiagonal matrix (Golub & Van Loan, §11.3.5), whose eigenvalues are the Ritz values of A:
//   T_jj = 1/α_j + β_{j−1}/α_{j−1},   T²_{j,j+1} = β_j/α_j²
#include "bilevel/linear/cg.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"
#include "bilevel/linear/system.h"

namespace bilevel {
namespace {

/// ‖r‖ and the energy ½ qᵀA q − bᵀq of an iterate, from its true residual r: qᵀA q = qᵀ(b − r) costs no product.
struct Quality {
  double residual = 1, energy = 0;
  bool finite() const { return std::isfinite(residual) && std::isfinite(energy); }
};

/// Near the solution the energies of two iterates differ by rounding only and the residual decides; far from it the residual may
/// rise while the error falls.
bool worse(const Quality& a, const Quality& b) { return !a.finite() || (a.residual > b.residual && a.energy > b.energy); }

/// One right-hand side.
struct CgRow {
  int64_t index = 0;                      // among the rows of the system
  Quality best;                           // of the row of best_
  bool measured = true;                   // the row of best_ is that of q_
  double drifted = 0;                     // the true residual where the recursive one was last found to be nothing but rounding
  bool restart = false;                   // go on from the true residual, with no memory of the directions
  double rz = 0;                          // of this iteration
  std::vector<double> diagonal, squares;  // of T
  LinearResult result;
};

class ConjugateGradients {
 public:
  ConjugateGradients(const System& system, const CgOptions& options)
      : system_(system),
        options_(options),
        tolerance_(std::max(options.tolerance, system.epsilon())),
        precondition_(make_preconditioner(system.A(), system.damping(), system.b(), options.preconditioner)) {}

  std::vector<LinearResult> run() {
    start();
    while (!rows_.empty() && iteration_ < options_.iterations) iterate();
    for (CgRow& row : rows_) row.result.status = Status::kIterationLimit;
    end(std::vector<bool>(rows_.size(), true));
    return std::move(results_);
  }

 private:
  at::Tensor preconditioned(const at::Tensor& r) const {
    if (!precondition_) return r;
    return r.size(0) == 1 ? precondition_(r[0]).unsqueeze(0) : precondition_(r);
  }

  /// r ← b − A q, and its quality. How far r was from it: drift.
  std::vector<Quality> measure(std::vector<double>* drift = nullptr) {
    at::sub_out(scratch_, b_, system_.apply(q_, scratch_));
    if (drift != nullptr) *drift = numbers(at::linalg_vector_norm(r_.sub_(scratch_), 2, {1}));
    r_.copy_(scratch_);
    const auto values = numbers({row_dots(r_, r_), row_dots(q_, b_), row_dots(q_, r_)});
    const size_t k = rows_.size();
    std::vector<Quality> found(k);
    for (size_t i = 0; i < k; ++i) found[i] = {std::sqrt(values[i]), -0.5 * (values[k + i] + values[2 * k + i])};
    return found;
  }

  void start() {
    const int64_t k = system_.rows();
    results_.resize(k);
    rows_.resize(k);
    b_ = system_.b();
    q_ = at::zeros_like(b_);
    r_ = b_.clone();
    scratch_ = at::empty_like(b_);
    for (int64_t i = 0; i < k; ++i) rows_[i].index = i;
    if (system_.q0().defined()) {
      q_.copy_(system_.q0());
      const auto qb = numbers(row_dots(q_, b_));
      const auto warm = measure();
      for (int64_t i = 0; i < k; ++i) {
        const double curvature = 2 * (warm[i].energy + qb[i]);  // q0ᵀA q0
        if (warm[i].finite() && warm[i].energy < 0 && curvature > 0) {
          rows_[i].best = warm[i];
        } else {
          q_[i].zero_();
          r_[i].copy_(b_[i]);
        }
      }
    }
    best_ = q_.clone();
    std::vector<bool> done(k);
    for (int64_t i = 0; i < k; ++i) {
      if ((done[i] = rows_[i].best.residual <= tolerance_)) rows_[i].result.status = Status::kConverged;
    }
    end(done);
    if (rows_.empty()) return;
    p_ = preconditioned(r_).clone();
    rz_ = row_dots(r_, p_);
    const auto values = numbers(rz_);
    for (size_t i = 0; i < rows_.size(); ++i) rows_[i].rz = values[i];
  }

  void iterate() {
    const at::Tensor Ap = system_.apply(p_, scratch_);
    at::Tensor pAp = row_dots(p_, Ap);
    at::Tensor alpha = rz_ / pAp;
    r_.addcmul_(Ap, alpha, -1);
    at::Tensor rr = row_dots(r_, r_);
    auto values = numbers({pAp, rr});
    if (end(failures(values))) {
      // The rows that are left, in the numbers too.
      keep_rows(left_, {&pAp, &alpha, &rr});
      values = numbers({pAp, rr});
    }
    if (rows_.empty()) return;
    const size_t k = rows_.size();
    q_.addcmul_(p_, alpha);
    ++iteration_;
    bool look = iteration_ % options_.true_residual_every == 0;
    std::vector<double> residual(k);
    for (size_t i = 0; i < k; ++i) {
      CgRow& row = rows_[i];
      row.measured = false;
      row.restart = false;
      row.result.iterations = iteration_;
      residual[i] = std::sqrt(values[k + i]);
      look = look || residual[i] <= tolerance_;
      remember(row, row.rz / values[i]);
    }
    std::vector<bool> done(k, false);
    if (look) {
      done = look_at_the_true_residual(residual);
      rr = row_dots(r_, r_);
    }
    for (size_t i = 0; i < k; ++i) {
      if (rows_[i].result.status != Status::kNonFinite) rows_[i].result.history.push_back(residual[i]);
    }
    if (end(done)) keep_rows(left_, {&rr});
    if (!rows_.empty()) turn(rr);
  }

  /// The direction must be built from the NEW residual; with the old one CG stalls at a few per cent error and still looks
  /// plausible (a defect found in two published libraries).
  void turn(const at::Tensor& rr) {
    const at::Tensor z = preconditioned(r_);
    const at::Tensor rz = precondition_ ? row_dots(r_, z) : rr;
    at::Tensor beta = rz / rz_;
    rz_ = rz;
    const auto values = numbers({rz, beta});
    for (size_t i = 0; i < rows_.size(); ++i) {
      CgRow& row = rows_[i];
      row.rz = values[i];
      const double of_row = row.restart ? 0.0 : values[rows_.size() + i];
      if (row.restart) beta[static_cast<int64_t>(i)].zero_();
      const double previous = row.squares.back();  // 1/α²
      row.squares.back() = of_row * previous;
      carried_[static_cast<size_t>(row.index)] = of_row * std::sqrt(previous);
    }
    p_.mul_(beta).add_(z);
  }

  /// A row of T; its entry of `squares` is 1/α² until β is known.
  void remember(CgRow& row, double alpha) {
    carried_.resize(results_.size(), 0.0);
    row.diagonal.push_back(1 / alpha + carried_[static_cast<size_t>(row.index)]);
    row.squares.push_back(1 / (alpha * alpha));
  }

  std::vector<bool> failures(const std::vector<double>& values) {
    const size_t k = rows_.size();
    std::vector<bool> found(k, false);
    for (size_t i = 0; i < k; ++i) {
      LinearResult& result = rows_[i].result;
      if (std::isnan(values[i])) {
        result.status = Status::kNonFinite;
        result.message = fmt::format("The product of iteration {} is not finite.", iteration_ + 1);
      } else if (!(rows_[i].rz > 0)) {
        result.status = Status::kIndefinite;
        result.message = fmt::format("The preconditioner is not positive definite, as iteration {} shows.", iteration_ + 1);
      } else if (values[i] <= 0) {
        result.status = Status::kIndefinite;
        const at::Tensor p = p_[static_cast<int64_t>(i)];
        result.negative_curvature = values[i] / dot_of(p, p);
        result.message = fmt::format("The curvature of iteration {} is {:.3g}, not positive; damping would help.", iteration_ + 1,
                                     *result.negative_curvature);
      } else if (!std::isfinite(values[k + i])) {
        result.status = Status::kNonFinite;
        result.message = fmt::format("The residual of iteration {} is not finite.", iteration_ + 1);
      } else {
        continue;
      }
      found[i] = true;
    }
    return found;
  }

  std::vector<bool> look_at_the_true_residual(std::vector<double>& residual) {
    std::vector<double> drift;
    const auto now = measure(&drift);
    std::vector<bool> done(rows_.size(), false);
    for (size_t i = 0; i < rows_.size(); ++i) {
      CgRow& row = rows_[i];
      if (!now[i].finite()) {
        row.result.status = Status::kNonFinite;
        row.result.message = fmt::format("The residual after iteration {} is not finite.", iteration_);
        row.measured = true;  // not to be measured again
        done[i] = true;
        continue;
      }
      residual[i] = now[i].residual;
      if (!worse(now[i], row.best)) keep(row, i, now[i]);
      if (residual[i] <= tolerance_) {
        row.result.status = Status::kConverged;
        done[i] = true;
      } else if (drift[i] > 0.5 * residual[i]) {
        // The recursion no longer knows the residual: go on from the true one, as long as that helps.
        if (row.drifted > 0 && residual[i] > 0.5 * row.drifted) {
          row.result.status = Status::kIterationLimit;
          row.result.message = system_.stopped_by_rounding(residual[i]);
          done[i] = true;
        }
        row.drifted = residual[i];
        row.restart = true;
      }
    }
    return done;
  }

  void keep(CgRow& row, size_t i, const Quality& quality) {
    row.best = quality;
    row.measured = true;
    best_[static_cast<int64_t>(i)].copy_(q_[static_cast<int64_t>(i)]);
  }

  /// Takes the rows that are done out of the iteration. Returns whether there were any; `left_` then says which went on.
  bool end(const std::vector<bool>& done) {
    if (std::none_of(done.begin(), done.end(), [](bool d) { return d; })) return false;
    bool measure_some = false;
    for (size_t i = 0; i < rows_.size(); ++i) measure_some = measure_some || (done[i] && !rows_[i].measured);
    if (measure_some) measure_at_the_end(done);

    std::vector<CgRow> going;
    std::vector<int64_t> left;
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (done[i]) {
        finish(rows_[i], static_cast<int64_t>(i));
      } else {
        going.push_back(std::move(rows_[i]));
        left.push_back(static_cast<int64_t>(i));
      }
    }
    rows_ = std::move(going);
    left_ = std::move(left);
    keep_rows(left_, {&b_, &q_, &r_, &p_, &best_, &scratch_, &rz_});
    return true;
  }

  void measure_at_the_end(const std::vector<bool>& done) {
    std::vector<int64_t> which;
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (done[i] && !rows_[i].measured) which.push_back(static_cast<int64_t>(i));
    }
    const at::Tensor index = at::tensor(which, b_.options().dtype(at::kLong));
    const at::Tensor q = q_.index_select(0, index), b = b_.index_select(0, index);
    const at::Tensor r = b - system_.apply(q);
    const auto values = numbers({row_dots(r, r), row_dots(q, b), row_dots(q, r)});
    for (size_t j = 0; j < which.size(); ++j) {
      const Quality last{std::sqrt(values[j]), -0.5 * (values[which.size() + j] + values[2 * which.size() + j])};
      const auto i = static_cast<size_t>(which[j]);
      if (!worse(last, rows_[i].best)) keep(rows_[i], i, last);
    }
  }

  void finish(CgRow& row, int64_t i) {
    LinearResult& result = row.result;
    result.relative_residual = row.best.residual;
    result.solution = best_[i].clone();
    if (result.status == Status::kIterationLimit && row.best.residual <= tolerance_) result.status = Status::kConverged;
    describe(result);
    result.smallest_curvature = curvature(row, i);
    results_[static_cast<size_t>(row.index)] = std::move(result);
  }

  std::optional<double> curvature(const CgRow& row, int64_t i) const {
    std::optional<double> found = row.result.negative_curvature;
    const auto lower = [&found](double value) {
      if (std::isfinite(value)) found = std::min(found.value_or(value), value);
    };
    if (!precondition_ && !row.diagonal.empty()) {
      lower(smallest_eigenvalue(row.diagonal, row.squares));
    } else {
      // With M the Ritz values are those of M⁻¹A; that of A at the solution: qᵀA q = 2 (energy + bᵀq).
      const auto values = numbers({best_[i].dot(b_[i]), best_[i].dot(best_[i])});
      if (values[1] > 0) lower(2 * (row.best.energy + values[0]) / values[1]);
    }
    return found;
  }

  const System& system_;
  const CgOptions& options_;
  const double tolerance_;
  const std::function<at::Tensor(const at::Tensor&)> precondition_;
  int64_t iteration_ = 0;
  // Of the rows that go on, [rows, d] and [rows, 1], in the order of rows_.
  std::vector<CgRow> rows_;
  at::Tensor b_, q_, r_, p_, best_, scratch_, rz_;
  std::vector<int64_t> left_;          // which rows the last `end` let go on
  std::vector<double> carried_;        // β/α of the iteration before, by index
  std::vector<LinearResult> results_;  // by index
};

}  // namespace

std::vector<std::string> CgOptions::violations() const {
  std::vector<std::string> found = preconditioner.violations();
  check_common(iterations, 1, tolerance, damping, found);
  if (true_residual_every < 1) found.push_back(fmt::format("true_residual_every = {} must be at least 1", true_residual_every));
  return found;
}

void read(Section& section, CgOptions& options) {
  section.read("iterations", options.iterations);
  section.read("tolerance", options.tolerance);
  section.read("damping", options.damping);
  read(section, options.preconditioner);
  section.check(options.violations());
}

Cg::Cg(CgOptions options) : options_(std::move(options)) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("Cg: {}.", fmt::join(violations, "; ")));
}

LinearResult Cg::solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const {
  require(A.symmetric,
          "Cg::solve: A is not symmetric; conjugate gradients need A = Aᵀ. Take gmres, bicgstab, normal-cg or dense.");
  const System system(A, options_.damping, b, q0, "Cg::solve");
  if (system.rows() == 0) return system.result({});
  return system.result(ConjugateGradients(system, options_).run());
}

}  // namespace bilevel
