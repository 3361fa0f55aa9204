// A_k = U Λ Uᵀ,  μ = δ + ρ:     (A_k + μ I)⁻¹ b = U (Λ + μ)⁻¹ Uᵀ b + (b − U Uᵀ b) / μ
//
// which equals Woodbury's  b/μ − C (M + CᵀC/μ)⁻¹ Cᵀ b / μ²  for A_k = C M⁻¹ Cᵀ, without squaring its condition.
#include "bilevel/linear/nystrom.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "bilevel/core/error.h"
#include "bilevel/linear/nystrom_approximation.h"
#include "bilevel/linear/system.h"

namespace bilevel {

std::vector<std::string> NystromOptions::violations() const {
  std::vector<std::string> found;
  if (rank < 1) found.push_back(fmt::format("rank = {} must be at least 1", rank));
  if (!(ridge > 0 && std::isfinite(ridge))) found.push_back(fmt::format("ridge = {} must be finite and positive", ridge));
  if (!(damping >= 0 && std::isfinite(damping))) {
    found.push_back(fmt::format("damping = {} must be finite and at least 0", damping));
  }
  if (sampling != "gaussian" && sampling != "coordinates") {
    found.push_back(fmt::format("sampling = \"{}\" must be \"gaussian\" or \"coordinates\"", sampling));
  }
  return found;
}

void read(Section& section, NystromOptions& options) {
  section.read("rank", options.rank);
  section.read("ridge", options.ridge);
  section.read("damping", options.damping);
  section.read_choice("sampling", options.sampling, {"gaussian", "coordinates"});
  section.check(options.violations());
}

Nystrom::Nystrom(NystromOptions options) : options_(std::move(options)) {
  const auto violations = options_.violations();
  require(violations.empty(), fmt::format("Nystrom: {}.", fmt::join(violations, "; ")));
}

LinearResult Nystrom::solve(const Operator& A, const at::Tensor& b, const at::Tensor& q0) const {
  require(A.symmetric, "Nystrom::solve: A is not symmetric; its approximation is. Take gmres, bicgstab or normal-cg.");
  const System system(A, options_.damping, b, q0, "Nystrom::solve");
  if (system.rows() == 0) return system.result({});

  const LowRank low = nystrom_approximation(A, options_.rank, options_.sampling == "coordinates", options_.seed, b.options());
  const double mu = options_.damping + options_.ridge;
  const at::Tensor right = system.b().to(at::kDouble);
  const at::Tensor inside = right.mm(low.U);
  at::Tensor q = (inside / (low.values + mu)).mm(low.U.t());
  if (low.U.size(1) < A.dim) {
    // Twice, because 1/μ magnifies what rounding leaves within the span of U; nothing is outside it where U is square.
    at::Tensor outside = right - inside.mm(low.U.t());
    outside = outside - outside.mm(low.U).mm(low.U.t());
    q = q + outside / mu;
  }
  q = low.finite ? q.to(b.scalar_type()) : at::zeros_like(system.b());
  const auto residuals = numbers(at::linalg_vector_norm(system.b() - system.apply(q), 2, {1}));

  std::vector<LinearResult> rows(static_cast<size_t>(system.rows()));
  for (size_t i = 0; i < rows.size(); ++i) {
    LinearResult& row = rows[i];
    row.solution = q[static_cast<int64_t>(i)];
    row.iterations = std::min(options_.rank, A.dim);
    row.relative_residual = residuals[i];
    row.message = fmt::format("Rank {} and ridge {:.3g} leave a relative residual of {:.3g}.", low.values.size(0), options_.ridge,
                              residuals[i]);
    if (!low.finite || !std::isfinite(residuals[i])) {
      row.solution = at::zeros_like(row.solution);
      row.relative_residual = 1;
      row.status = Status::kNonFinite;
      row.message = "The products with A are not finite.";
      continue;
    }
    row.history.push_back(residuals[i]);
    row.smallest_curvature = low.lowest + options_.damping;
    if (low.lowest + options_.damping <= 0 && low.indefinite) {
      row.status = Status::kIndefinite;
      row.negative_curvature = row.smallest_curvature;
      row.message = fmt::format("A has the curvature {:.3g} in the directions taken, not positive; damping would help.",
                                *row.negative_curvature);
    } else if (residuals[i] > 1) {
      row.status = Status::kDiverged;
      row.message += " Zero would leave 1: a larger rank, or a ridge above the eigenvalues that are left out, would help.";
    } else if (residuals[i] <= system.epsilon()) {
      row.status = Status::kConverged;
    }
  }
  return system.result(std::move(rows));
}

}  // namespace bilevel
