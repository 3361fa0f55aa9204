#include "bilevel/linear/registry.h"

#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/linear/bicgstab.h"
#include "bilevel/linear/cg.h"
#include "bilevel/linear/dense.h"
#include "bilevel/linear/gmres.h"
#include "bilevel/linear/minres.h"
#include "bilevel/linear/neumann.h"
#include "bilevel/linear/normal_cg.h"
#include "bilevel/linear/nystrom.h"
#include "bilevel/linear/richardson.h"
#include "bilevel/linear/sgd.h"

namespace bilevel {
namespace {

template <class Solver, class Options>
SolverRow row(std::string name, std::string description) {
  return {std::move(name), std::move(description), [](Section& section) -> std::unique_ptr<LinearSolver> {
            Options options;
            read(section, options);
            return std::make_unique<Solver>(options);
          }};
}

}  // namespace

const std::vector<SolverRow>& linear_solvers() {
  static const std::vector<SolverRow> rows = {
      row<Cg, CgOptions>("cg", "conjugate gradients; A symmetric positive definite, one product an iteration"),
      row<Neumann, NeumannOptions>("neumann", "truncated Neumann series, scale s; needs the eigenvalues of A in (0, 2/s)"),
      row<NormalCg, NormalCgOptions>("normal-cg",
                                     "conjugate gradients on AᵀA; any regular A with products by Aᵀ, two an iteration"),
      row<Minres, MinresOptions>("minres", "minimal residuals; A symmetric, definite or not, one product an iteration"),
      row<Gmres, GmresOptions>("gmres", "restarted minimal residuals; any regular A, keeps a vector for each product of a cycle"),
      row<Bicgstab, BicgstabOptions>("bicgstab", "stabilised biconjugate gradients; any regular A, few vectors"),
      row<Richardson, RichardsonOptions>("richardson", "the fixed point q + s (b − A q); needs |1 − s λ| < 1, symmetric or not"),
      row<Nystrom, NystromOptions>("nystrom", "rank k and a ridge by Woodbury's formula; k products and no iteration"),
      row<SgdSolver, SgdSolverOptions>("sgd", "stochastic gradient descent on ½ qᵀA q − bᵀq with fresh batches, tail averaged"),
      row<Dense, DenseOptions>("dense", "the matrix of A and its LU decomposition; exact, for small problems"),
  };
  return rows;
}

std::unique_ptr<LinearSolver> make_linear_solver(const std::string& name, Section& options) {
  std::vector<std::string> known;
  for (const auto& solver : linear_solvers()) {
    if (solver.name == name) return solver.make(options);
    known.push_back(solver.name);
  }
  options.fail("solver", fmt::format("\"{}\" is no linear solver.{}", name, suggestion(name, known)));
}

}  // namespace bilevel
