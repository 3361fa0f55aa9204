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

constexpr int64_t kBlock = 64;  // products at a time where A takes blocks: beyond that a block gains nothing and needs memory

/// A + δI. Row i of `columns` is A e_i, the column i of A.
at::Tensor matrix(const Operator& A, double damping, const at::TensorOptions& options) {
  const int64_t d = A.dim;
  at::Tensor columns = at::empty({d, d}, options.dtype(at::kDouble));
  for (int64_t from = 0; from < d; from += kBlock) {
    const int64_t size = std::min(kBlock, d - from);
    at::Tensor unit = at::zeros({size, d}, options);
    unit.diagonal(from).fill_(1);
    if (A.blocks) {
      columns.narrow(0, from, size).copy_(A.apply(unit).detach());
    } else {
      for (int64_t i = 0; i < size; ++i) columns[from + i].copy_(A.apply(unit[i]).detach());
    }
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
  if (auto trivial = system.trivial()) return *trivial;

  LinearResult result;
  result.iterations = A.dim;
  const at::Tensor M = matrix(A, options_.damping, b.options());
  if (!M.isfinite().all().item<bool>()) {
    result.solution = at::zeros_like(b);
    result.status = Status::kNonFinite;
    result.message = "The matrix of A has entries that are not finite.";
    result.relative_residual = 1;
    return result;
  }

  const at::Tensor rhs = system.b().to(at::kDouble).unsqueeze(1);
  const auto [LU, pivots, info] = at::linalg_lu_factor_ex(M);
  const at::Tensor u = LU.diagonal().abs();
  // U's diagonal shows a singular matrix by a last pivot of the size of the rounding in the products.
  const double smallest = static_cast<double>(A.dim) * system.epsilon();
  const auto pivot = numbers({u.min(), u.max()});
  at::Tensor q;
  if (pivot[0] > smallest * pivot[1]) {
    q = at::linalg_lu_solve(LU, pivots, rhs);
    result.status = Status::kConverged;
    result.message = fmt::format("Solved by LU decomposition of the matrix [{0}, {0}].", A.dim);
  } else {
    // The drivers that know the rank run on the CPU only.
    q = std::get<0>(at::linalg_lstsq(M.cpu(), rhs.cpu(), smallest, "gelsd")).to(b.device());
    result.status = Status::kSingular;
    result.message =
        fmt::format("A is singular to rounding (pivots from {:.3g} to {:.3g}); damping would help.", pivot[0], pivot[1]);
  }
  q = q.squeeze(1).to(b.scalar_type());
  result.relative_residual = at::linalg_vector_norm(system.residual(q)).item<double>();
  result.history.push_back(result.relative_residual);
  result.solution = system.unscaled(q);
  return result;
}

}  // namespace bilevel
