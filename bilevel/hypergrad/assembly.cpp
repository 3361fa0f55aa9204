#include "bilevel/hypergrad/assembly.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/core/guards.h"
#include "bilevel/core/vectors.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/oracle/autograd.h"
#include "bilevel/problem/inner_constraints.h"

namespace bilevel {
namespace {

// Zero nowhere, and orthogonal to nothing in particular.
at::Tensor generic_vector(const at::Tensor& like) { return 1.5 + at::cos(at::arange(1, like.size(0) + 1, like.options())); }

// ∂x g, or (∂x r)ᵀ w of an optimality map with a w that is zero nowhere.
at::Tensor inner_gradient(const Problem& problem, const at::Tensor& x, const at::Tensor& y) {
  const at::AutoGradMode grad_mode(true);
  const SeedGuard guard(0);
  const at::Tensor x_leaf = leaf(x);
  if (!problem.has_optimality_map()) return gradients(problem.inner_loss(x_leaf, y, Batch{}), {x_leaf})[0];
  return gradients(problem.optimality_map(x_leaf, y, Batch{}), {x_leaf}, generic_vector(y))[0];
}

// Away from the start, which may be a point of symmetry (zero weights have no derivative by their ridge).
at::Tensor generic_inner_point(const Problem& problem, const at::Tensor& x) {
  const at::Tensor y = problem.initial_inner(x, 0).detach();
  return y + 0.1 * at::sin(at::arange(1, y.size(0) + 1, y.options()));
}

std::vector<std::string> object_to_zeros(const Problem& problem, const at::Tensor& sensitivity, std::string_view estimator,
                                         std::string_view how) {
  std::vector<std::string> objections;
  for (const Part& part : problem.outer_layout().parts()) {
    if (part.size == 0 || sensitivity.narrow(0, part.offset, part.size).ne(0).any().item<bool>()) continue;
    objections.push_back(fmt::format(
        "\"{}\" of x does not enter the inner loss: it moves the inner problem {}, where the derivative of {} is zero. Use "
        "estimator = \"unrolled\".",
        part.name, how, estimator));
  }
  return objections;
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
  const auto finite = [](const at::Tensor& t) {  // whose squares may not be
    return !t.defined() || std::isfinite(norm_of(t)) || std::isfinite(t.abs().sum().item<double>());
  };
  if (!finite(h.value) || !finite(h.q) || !std::isfinite(h.outer_loss) || !std::isfinite(h.inner_loss)) {
    demote(h, Grade::kBad, "The hypergradient or a loss is not finite; a smaller inner step size is the usual remedy.");
  }
}

std::vector<std::string> object_to_parts_beyond_the_inner_loss(const Problem& problem, std::string_view estimator) {
  if (problem.has_inner_constraints()) return object_to_constraints(problem, estimator);
  if (!problem.has_rule_hyperparameters() && !problem.initial_inner_depends_on_outer()) return {};
  const at::Tensor x = problem.initial_outer();
  return object_to_zeros(problem, inner_gradient(problem, x, generic_inner_point(problem, x)), estimator,
                         "only through the update rule or the starting point");
}

std::vector<std::string> object_to_constraints(const Problem& problem, std::string_view estimator) {
  if (!problem.has_inner_constraints()) return {};
  return {
      fmt::format("This problem has constraints on y, or an l1 penalty, and \"{}\" differentiates as if y moved freely. Use "
                  "estimator = \"implicit\" with "
                  "the inner solver \"prox\".",
                  estimator)};
}

std::vector<std::string> object_to_stopping_elsewhere(const InnerSolver& solver) {
  if (solver.stops_at_stationarity()) return {};
  return {fmt::format(
      "Where the inner rule \"{}\" stops depends on the way there, so there is no optimality condition to differentiate. Use "
      "amsgrad = false, put the decay into the inner loss, or use estimator = \"unrolled\".",
      solver.name())};
}

std::vector<std::string> object_to_parts_beyond_the_inner_problem(const Problem& problem, const InnerSolver& solver) {
  if (!problem.has_rule_hyperparameters() && !problem.initial_inner_depends_on_outer()) return {};
  const at::Tensor x = problem.initial_outer(), y = generic_inner_point(problem, x);
  const at::AutoGradMode grad_mode(true);
  const at::Tensor x_leaf = leaf(x), w = generic_vector(y);
  at::Tensor sensitivity = inner_gradient(problem, x, y).abs();
  sensitivity = sensitivity + gradients(solver.residual(problem, x_leaf, y, w.flip(0)), {x_leaf}, w)[0].abs();
  if (problem.has_inner_constraints()) {
    const InnerConstraints c = problem.inner_constraints(x_leaf);
    for (const at::Tensor& given : {c.lower, c.upper, c.equality, c.equality_rhs, c.l1}) {
      if (given.defined())
        sensitivity = sensitivity + gradients(given, {x_leaf}, generic_vector(given.flatten()).view_as(given))[0].abs();
    }
  }
  return object_to_zeros(problem, sensitivity, "implicit",
                         "only through the way of the inner solve (its step sizes, its starting point)");
}

at::Tensor initial_inner_vjp(const Problem& problem, const at::Tensor& x, int64_t slice, const at::Tensor& y_bar) {
  const at::AutoGradMode grad_mode(true);
  const at::Tensor x_leaf = leaf(x);
  return gradients(problem.initial_inner(x_leaf, slice), {x_leaf}, y_bar)[0];
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

double rounding_of_steps(const at::Tensor& value, int64_t terms, double norms) {
  const double unit = value.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                         : static_cast<double>(std::numeric_limits<float>::epsilon());
  return 8 * unit * std::sqrt(static_cast<double>(terms) + 1) * norms;  // roundings of either sign: a random walk
}

}  // namespace bilevel
