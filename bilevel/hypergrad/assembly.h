#pragma once
#include <string>
#include <vector>

#include "bilevel/hypergrad/estimator.h"

namespace bilevel {

/// What every hypergradient at a solution holds, whatever estimator makes it: the losses, the direct term, the stationarity.
/// `value` is the direct term for the time being.
Hypergradient direct_term(const EstimatorInput& in, const Gradients& outer, std::string differentiates);

/// Makes the grade at least as bad as `grade`, with the sentence of the worst one.
void demote(Hypergradient& h, Grade grade, std::string sentence);

/// BAD where the inner solve failed or the value or q is not finite.
void check_finite(Hypergradient& h, const InnerSolution& solution);

/// Objections of every estimator that differentiates through ∂x∂y g alone: parts of x that feed the update rule or the starting
/// point but not the inner loss would get no derivative but the direct one, silently.
std::vector<std::string> object_to_parts_beyond_the_inner_loss(const Problem& problem, std::string_view estimator);

/// The same for an estimator that differentiates all that the inner solver drives to zero, under the constraints on y: the
/// solver's own hyperparameters in it, and what x has to do with bounds, equalities and l1 weights, count too.
std::vector<std::string> object_to_parts_beyond_the_inner_problem(const Problem& problem, const InnerSolver& solver);

/// The objection of every estimator that differentiates as if y moved freely.
std::vector<std::string> object_to_constraints(const Problem& problem, std::string_view estimator);

/// The objection of every estimator that differentiates an optimality condition: the rule must stop where one holds.
std::vector<std::string> object_to_stopping_elsewhere(const InnerSolver& solver);

/// (∂y₀/∂x)ᵀ ȳ [dx].
at::Tensor initial_inner_vjp(const Problem& problem, const at::Tensor& x, int64_t slice, const at::Tensor& y_bar);

/// η: the step size of the inner solve's last step, a scalar or [dy].
at::Tensor inner_step_size(const EstimatorInput& in);

/// The objection where `solver` has no step size, which these estimators take for the inverse Hessian.
std::vector<std::string> object_to_missing_step_size(const Problem& problem, const InnerSolver& solver);

/// What rounding may leave in a sum of `terms` numbers whose norms add up to `norms`, through as many steps: a model, with room,
/// and no proof.
double rounding_of_steps(const at::Tensor& value, int64_t terms, double norms);

}  // namespace bilevel
