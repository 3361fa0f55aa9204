#include "bilevel/linear/dense.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/linear/system.h"

namespace bilevel {
namespace {

/// A + δI, in double. Row i of `columns` is A e_i, the column i of A.
at::Tensor matrix(const Operator& A, double damping, const at::TensorOptions& options) {
  constexpr int64_t kBlock = 64;  // unit vectors held at a time
  const int64_t d = A.dim;
  at::Tensor columns = at::empty({d, d}, options.dtype(at::kDouble));
  for (int64_t from = 0; from < d; from += kBlock) {
    const int64_t size = std::min(kBlock, d - from);
    at::Tensor unit = at::zeros({size, d}, options);
    unit.diagonal(from).fill_(1);
    columns.narrow(0, from, size).copy_(products(A, unit));
  }
  columns.diagonal().add_(damping);
  return columns.t();
}

}  // namespace

std::vector<std::string> DenseOptions::violations() const {
  std::vector<std::string> found;
  if (!(damping >= 0 && std::isfinite(damping)))
    found.push_back(fmt::format("damping = {} must be finite and at least 0", damping));
  if (max_dim < 1) found.push_back(fmt::format("max_dim = {} must be at least 1", max_dim));
  return found;
}

void read(Section& section, DenseOptions& options) {
  section.read("damping", options.damping);
  section.read("max_dim", options.max_dim);
  section.check(options.violations());
}

Dense::Dense(DenseOptions options) : options_(options) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("Dense: {}.", fmt::join(violations, "; ")));
}

LinearResult Dense::solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const {
  const System system(A, options_.damping, b, q0, "Dense::solve");
  require(
      A.dim <= options_.max_dim,
      fmt::format("Dense::solve: A has dimension {}, more than max_dim = {}; its matrix would take {:.1f} GB. Take cg, or raise "
                  "max_dim.",
                  A.dim, options_.max_dim, 8e-9 * static_cast<double>(A.dim) * static_cast<double>(A.dim)));
  if (system.rows() == 0) return system.result({});

  std::vector<LinearResult> rows(static_cast<size_t>(system.rows()));
  for (LinearResult& row : rows) row.iterations = A.dim;
  const at::Tensor M = matrix(A, options_.damping, b.options());
  if (!M.isfinite().all().item<bool>()) {
    for (LinearResult& row : rows) {
      row.solution = at::zeros({A.dim}, b.options());
      row.status = Status::kNonFinite;
      row.message = "The matrix of A has entries that are not finite.";
      row.relative_residual = 1;
    }
    return system.result(std::move(rows));
  }

  const at::Tensor rhs = system.b().to(at::kDouble).t();
  const auto [LU, pivots, info] = at::linalg_lu_factor_ex(M);
  const at::Tensor u = LU.diagonal().abs();
  // U's diagonal shows a singular matrix by a last pivot of the size of the rounding in the products.
  const double smallest = static_cast<double>(A.dim) * system.epsilon();
  const auto pivot = numbers({u.min(), u.max()});
  const bool regular = pivot[0] > smallest * pivot[1];
  at::Tensor q;
  if (regular) {
    q = at::linalg_lu_solve(LU, pivots, rhs);
  } else {
    // The drivers that know the rank run on the CPU only.
    q = std::get<0>(at::linalg_lstsq(M.cpu(), rhs.cpu(), smallest, "gelsd")).to(b.device());
  }
  q = q.t().to(b.scalar_type());
  const auto residuals = numbers(at::linalg_vector_norm(system.b() - system.apply(q), 2, {1}));
  for (size_t i = 0; i < rows.size(); ++i) {
    LinearResult& row = rows[i];
    row.solution = q[static_cast<int64_t>(i)];
    row.relative_residual = residuals[i];
    row.history.push_back(residuals[i]);
    row.status = regular ? Status::kConverged : Status::kSingular;
    row.message = regular ? fmt::format("Solved by LU decomposition of the matrix [{0}, {0}].", A.dim)
                          : fmt::format("A is singular to rounding (pivots from {:.3g} to {:.3g}); damping would help.", pivot[0],
                                        pivot[1]);
  }
  return system.result(std::move(rows));
}

}  // namespace bilevel
