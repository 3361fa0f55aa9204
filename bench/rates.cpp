// The error of a hypergradient against the number K of products with H, on quadratics of condition 10, 10³ and 10⁶, at the exact
// inner solution: docs/rates.svg. Writes JSON: one record for each method, condition and K, with the bound of the theory beside
// the error.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/inner/rule_solver.h"
#include "bilevel/inner/sgd.h"
#include "bilevel/linear/registry.h"
#include "bilevel/oracle/autodiff.h"
#include "bilevel/problem/test_problems.h"

namespace {

using namespace bilevel;

/// ‖value − ∇F‖ / ‖implicit part of ∇F‖ of an estimator whose inner solve began at y* and took `steps` steps of size 1/L = 1.
double error(const QuadraticProblem& problem, const Estimator& estimator, int64_t steps) {
  const AutodiffOracle oracle(problem);
  const at::Tensor x = problem.initial_outer();
  const RuleSolver solver(std::make_unique<SgdRule>(SgdRuleOptions{}), {.lr = 1.0, .steps = steps});
  InnerSolution solution = solver.solve(oracle, x, 0, {.y = problem.solution(x)}, estimator.trajectory());
  EstimatorInput in{oracle, solver, x, solution, Batch{}, Batch{}, {}};
  in.cold_start = false;
  const Hypergradient h = estimator.estimate(in);
  const at::Tensor exact = problem.hypergradient(x);
  return ((h.value - exact).norm() / (exact - h.direct).norm()).item<double>();
}

/// The factor by which the error falls with each product, by theory.
double rate(const std::string& method, double condition) {
  const double root = std::sqrt(condition);
  return method == "neumann" || method == "truncation" ? 1 - 1 / condition : (root - 1) / (root + 1);
}

std::unique_ptr<Estimator> implicit(const std::string& solver, int64_t K) {
  Section section =
      Config::parse(fmt::format("iterations = {}\ntolerance = 0\n{}", K, solver == "gmres" ? fmt::format("restart = {}", K) : ""),
                    "rates")
          .root();
  return std::make_unique<Implicit>(make_linear_solver(solver, section));
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app{"Errors of hypergradients against the number of products."};
  std::string out;
  int64_t dimension = 200, most = 1000;
  app.add_option("--out", out, "JSON file; standard output without it");
  app.add_option("--dimension", dimension, "of y");
  app.add_option("--most", most, "the largest K");
  CLI11_PARSE(app, argc, argv);

  nlohmann::json records = nlohmann::json::array();
  for (const double condition : {1e1, 1e3, 1e6}) {
    const QuadraticProblem problem({.outer = 5, .inner = dimension, .condition = condition});
    for (const std::string method : {"cg", "minres", "gmres", "neumann", "truncation"}) {
      double previous = 1;
      for (double k = 1; k <= static_cast<double>(most); k = std::max(k + 1, k * 1.25)) {
        const auto K = static_cast<int64_t>(k);
        if (method == "gmres" && K > dimension) break;  // by then it is exact
        const std::unique_ptr<Estimator> estimator =
            method == "truncation" ? std::make_unique<Unrolled>(UnrolledOptions{}) : implicit(method, K);
        const double found = error(problem, *estimator, method == "truncation" ? K : 1);
        records.push_back(
            {{"condition", condition}, {"method", method}, {"K", K}, {"error", found}, {"rate", rate(method, condition)}});
        if (std::max(found, previous) < 1e-13) break;
        previous = found;
      }
    }
  }
  const nlohmann::json all = {{"dimension", dimension}, {"records", records}};
  if (out.empty()) {
    std::cout << all.dump(1) << "\n";
  } else {
    std::ofstream(out) << all.dump(1) << "\n";
  }
  return 0;
}
