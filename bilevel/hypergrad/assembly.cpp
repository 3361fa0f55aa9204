#include "bilevel/hypergrad/assembly.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/core/guards.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/oracle/autograd.h"

namespace bilevel {
namespace {

at::Tensor inner_loss_gradient(const Problem& problem, const at::Tensor& x, const at::Tensor& y) {
  const at::AutoGradMode grad_mode(true);
  const SeedGuard guard(0);
  const at::Tensor x_leaf = leaf(x);
  return gradients(problem.inner_loss(x_leaf, y, Batch{}), {x_leaf})[0];
}

}  // namespace

Hypergradient direct_term(const EstimatorInput& in, const Gradients& outer, std::string differentiates) {
  Hypergradient h;
  h.value = outer.x;
  h.direct = outer.x;
  h.inner_loss = in.solution.loss;
  h.outer_loss = outer.value.item<double>();
  h.certificate.differentiates = std::move(differentiates);
  h.certificate.stationarity = in.solution.stationarity;
  return h;
}

void demote(Hypergradient& h, Grade grade, std::string sentence) {
  if (static_cast<int>(grade) <= static_cast<int>(h.grade)) return;
  h.grade = grade;
  h.message = std::move(sentence);
}

void check_finite(Hypergradient& h, const InnerSolution& solution) {
  if (failed(solution.status)) {
    demote(h, Grade::kBad, fmt::format("The inner solve failed ({}): {}", to_string(solution.status), solution.message));
  }
  // A sum is finite only where all terms are; one reduction instead of a mask.
  const auto finite = [](const at::Tensor& t) { return !t.defined() || std::isfinite(t.abs().sum().item<double>()); };
  if (!finite(h.value) || !finite(h.q) || !std::isfinite(h.outer_loss) || !std::isfinite(h.inner_loss)) {
    demote(h, Grade::kBad, "The hypergradient or a loss is not finite; a smaller inner step size is the usual remedy.");
  }
}

std::vector<std::string> object_to_parts_beyond_the_inner_loss(const Problem& problem, std::string_view estimator) {
  if (!problem.has_rule_hyperparameters() && !problem.initial_inner_depends_on_outer()) return {};
  const at::Tensor x = problem.initial_outer();
  at::Tensor y = problem.initial_inner(x, 0).detach();
  // Away from the start, which may be a point of symmetry (zero weights have no derivative by their ridge).
  y = y + 0.1 * at::sin(at::arange(1, y.size(0) + 1, y.options()));
  const at::Tensor gradient = inner_loss_gradient(problem, x, y);
  std::vector<std::string> objections;
  for (const Part& part : problem.outer_layout().parts()) {
    if (part.size == 0 || gradient.narrow(0, part.offset, part.size).ne(0).any().item<bool>()) continue;
    objections.push_back(
        fmt::format("\"{}\" of x does not enter the inner loss: it moves the inner problem only through the update rule or the "
                    "starting point, where the derivative of {} is zero. Use estimator = \"unrolled\".",
                    part.name, estimator));
  }
  return objections;
}

at::Tensor inner_step_size(const EstimatorInput& in) {
  return in.solution.step_size.defined() ? in.solution.step_size : in.solver.step_size(in.oracle.problem(), in.x);
}

std::vector<std::string> object_to_missing_step_size(const Problem& problem, const InnerSolver& solver) {
  if (dynamic_cast<const RuleSolver*>(&solver) != nullptr) return {};  // it has one, which may cost a few products to find
  try {
    solver.step_size(problem, problem.initial_outer());
    return {};
  } catch (const Error& error) {
    return {error.what()};
  }
}

}  // namespace bilevel
