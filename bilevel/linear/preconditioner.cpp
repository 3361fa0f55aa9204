#include "bilevel/linear/preconditioner.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/linear/nystrom_approximation.h"
#include "bilevel/linear/system.h"

namespace bilevel {
namespace {

using Map = std::function<at::Tensor(const at::Tensor&)>;

const std::vector<std::string>& kinds() {
  static const std::vector<std::string> all = {"none", "problem", "rule", "diagonal", "nystrom"};
  return all;
}

/// A map of vectors, on rows.
Map by_rows(Map map) {
  return [map = std::move(map)](const at::Tensor& v) {
    if (v.dim() == 1) return map(v).detach();
    std::vector<at::Tensor> rows;
    for (const at::Tensor& row : v.unbind(0)) rows.push_back(map(row).detach());
    return at::stack(rows);
  };
}

Map diagonal(const Operator& A, double damping, const at::Tensor& like, const PreconditionerOptions& options) {
  const bool exact = A.dim <= options.probes;
  at::Tensor d;
  if (exact) {
    d = products(A, at::eye(A.dim, like.options())).diagonal();
  } else {
    const at::Tensor signs = Stream(options.seed, "diagonal").at(0).integers(2, {options.probes, A.dim}) * 2 - 1;
    const at::Tensor z = signs.to(like.options());
    d = (z * products(A, z)).mean(0);
  }
  d = d + damping;
  // An estimate may fall to zero or below by chance, and a curvature may: neither may stop the solve.
  const at::Tensor floor = (exact ? 1e-12 : 1e-6) * d.abs().max();
  if (!(floor.item<double>() > 0)) return {};  // zero, or NaN
  const at::Tensor inverse = 1 / d.abs().maximum(floor);
  return [inverse](const at::Tensor& v) { return v * inverse; };
}

Map nystrom(const Operator& A, double damping, const at::Tensor& like, const PreconditionerOptions& options) {
  const LowRank low = nystrom_approximation(A, options.rank, false, options.seed, like.options());
  const int64_t k = low.values.size(0);
  if (k == 0) return {};
  const at::Tensor U = low.U.to(like.options());
  // (λ_k + δ)(Λ + δ)⁻¹ − 1, so that M⁻¹ v = v + U (…) Uᵀ v.
  const at::Tensor gain = ((low.values[k - 1] + damping) / (low.values + damping) - 1).to(like.options());
  return [U, gain](const at::Tensor& v) {
    const at::Tensor rows = v.dim() == 1 ? v.unsqueeze(0) : v;
    const at::Tensor preconditioned = rows + (rows.mm(U) * gain).mm(U.t());
    return v.dim() == 1 ? preconditioned.squeeze(0) : preconditioned;
  };
}

}  // namespace

std::vector<std::string> PreconditionerOptions::violations() const {
  std::vector<std::string> found;
  if (std::find(kinds().begin(), kinds().end(), kind) == kinds().end()) {
    found.push_back(fmt::format("precondition = \"{}\" is not known; it is {}", kind, one_of(kinds())));
  }
  if (probes < 1) found.push_back(fmt::format("probes = {} must be at least 1", probes));
  if (rank < 1) found.push_back(fmt::format("rank = {} must be at least 1", rank));
  return found;
}

std::string read_precondition(Section& section) {
  if (section.has("precondition") && !section.is_text("precondition")) {
    bool problem = false;
    section.read("precondition", problem);
    return problem ? "problem" : "none";
  }
  std::string kind = "none";
  section.read_choice("precondition", kind, kinds());
  return kind;
}

void read(Section& section, PreconditionerOptions& options) {
  options.kind = read_precondition(section);
  if (options.kind == "diagonal") section.read("probes", options.probes);
  if (options.kind == "nystrom") section.read("rank", options.rank);
}

Map make_preconditioner(const Operator& A, double damping, const at::Tensor& like, const PreconditionerOptions& options) {
  if (options.kind == "problem" || options.kind == "rule") return A.precondition ? by_rows(A.precondition) : Map{};
  if (options.kind == "diagonal") return diagonal(A, damping, like, options);
  if (options.kind == "nystrom") return nystrom(A, damping, like, options);
  return {};
}

}  // namespace bilevel
