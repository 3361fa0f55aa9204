// What error bounds add to a run: gradients and products of a softmax regression of the digits (650 weights, a log ridge for each
// pixel) over forty outer steps, with a bound at every 5th, 10th, 20th, 40th of them, beside none. Counts, no times. Prints one
// JSON object.
#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "bilevel/core/guards.h"
#include "bilevel/hypergrad/certificate.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/linear/cg.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/problem/digits.h"
#include "bilevel/problem/function_problem.h"

namespace bilevel {
namespace {

using Json = nlohmann::ordered_json;

at::Tensor cross_entropy(const at::Tensor& y, const at::Tensor& X, const at::Tensor& labels) {
  const at::Tensor logits = X.mm(y.narrow(0, 0, 640).view({10, 64}).t()) + y.narrow(0, 640, 10);
  return (logits.logsumexp({1}) - logits.gather(1, labels.unsqueeze(1)).squeeze(1)).mean();
}

FunctionProblem softmax_of_digits() {
  const at::Tensor images = digits().pixels.reshape({-1, 64}).to(at::kFloat) / 16, labels = digits().labels;
  const at::Tensor X = images.narrow(0, 0, 600), V = images.narrow(0, 600, 600);
  const at::Tensor t = labels.narrow(0, 0, 600), s = labels.narrow(0, 600, 600);
  return FunctionProblem({.inner_loss =
                              [=](const at::Tensor& x, const at::Tensor& y) {
                                const at::Tensor W = y.narrow(0, 0, 640).view({10, 64});
                                return cross_entropy(y, X, t) + 0.5 * (x.exp() * W.square()).sum();
                              },
                          .outer_loss = [=](const at::Tensor&, const at::Tensor& y) { return cross_entropy(y, V, s); },
                          .x0 = at::full({64}, -4.0, at::kFloat),
                          .y0 = at::zeros({650}, at::kFloat)});
}

/// Oracle calls of `steps` outer steps, warm, with a bound at every `every`th; 0: none.
int64_t calls(const Problem& problem, const InnerSolver& solver, int64_t steps, int64_t every) {
  const AutodiffOracle autodiff(problem);
  const CountedOracle oracle(autodiff);
  const Implicit estimator(std::make_unique<Cg>(CgOptions{.iterations = 20}));
  at::Tensor x = problem.initial_outer(), y = problem.initial_inner(x, 0), q;
  for (int64_t k = 0; k < steps; ++k) {
    InnerSolution solution = solver.solve(oracle, x, 0, {y}, {});
    EstimatorInput in{oracle, solver, x, solution, {}, {}, q};
    Hypergradient h = estimator.estimate(in);
    if (every > 0 && k % every == 0) certify(h, in);
    y = solution.y, q = h.q;
    x = x - 0.1 * h.value / h.value.abs().max();
  }
  return oracle.cost().oracle_calls();
}

Json measure(const std::string& name, const InnerSolver& solver) {
  constexpr int64_t kSteps = 40;
  const FunctionProblem problem = softmax_of_digits();
  const int64_t without = calls(problem, solver, kSteps, 0);
  Json row{{"inner", name}, {"outer_steps", kSteps}, {"calls_without", without}};
  for (const int64_t every : {5, 10, 20, 40}) {
    const int64_t with = calls(problem, solver, kSteps, every);
    row[fmt::format("more_percent_every_{}", every)] = 100.0 * static_cast<double>(with - without) / static_cast<double>(without);
  }
  return row;
}

}  // namespace
}  // namespace bilevel

int main() {
  using namespace bilevel;
  const ThreadsGuard one(1);
  const at::NoGradGuard no_grad;
  RuleSolverOptions descent;
  descent.steps = 100;
  Json rows = Json::array();
  rows.push_back(measure("sgd, 100 steps", RuleSolver(std::make_unique<SgdRule>(SgdRuleOptions{}), descent)));
  rows.push_back(measure("lbfgs, to 1e-4", Lbfgs(LbfgsOptions{.max_iterations = 200, .tolerance = 1e-4})));
  fmt::print("{}\n", Json{{"command", "bound_cost"}, {"dtype", "float32"}, {"rows", rows}}.dump(2));
  return 0;
}
