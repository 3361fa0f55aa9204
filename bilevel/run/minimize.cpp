#include "bilevel/run/minimize.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

#include "bilevel/algorithm/double_loop.h"
#include "bilevel/core/error.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/inner/registry.h"
#include "bilevel/oracle/choice.h"
#include "bilevel/oracle/counted.h"
#include "bilevel/outer/adam.h"

namespace bilevel {
namespace {

/// The options as a configuration, so that the registries can read them: every name that they know works here too.
Config configuration(const MinimizeOptions& options) {
  Config config = Config::parse("", "minimize");
  if (options.inner_rule == "lbfgs") {
    config.set("inner.solver=lbfgs");
  } else {
    config.set("inner.rule=" + options.inner_rule);
    if (options.lr) config.set(fmt::format("inner.lr={}", *options.lr));
  }
  config.set(fmt::format("inner.steps={}", options.inner_steps));
  config.set("hypergradient.solver=" + options.solver);
  if (options.solver != "dense") config.set(fmt::format("hypergradient.iterations={}", options.iterations));
  return config;
}

}  // namespace

std::vector<std::string> MinimizeOptions::violations() const {
  std::vector<std::string> found;
  if (inner_steps < 0) found.push_back(fmt::format("inner_steps = {} is negative", inner_steps));
  if (lr && !(*lr > 0 && std::isfinite(*lr))) found.push_back(fmt::format("lr = {} must be finite and positive", *lr));
  if (lr && inner_rule == "lbfgs") found.push_back(fmt::format("lr = {} is given, and lbfgs takes none", *lr));
  if (iterations < 1) found.push_back(fmt::format("iterations = {} must be at least 1", iterations));
  if (!(outer_lr > 0 && std::isfinite(outer_lr)))
    found.push_back(fmt::format("outer_lr = {} must be finite and positive", outer_lr));
  if (steps < 0) found.push_back(fmt::format("steps = {} is negative", steps));
  return found;
}

MinimizeResult minimize(const Problem& problem, const MinimizeOptions& options) {
  const std::vector<std::string> violations = options.violations();
  require(violations.empty(), fmt::format("minimize: {}.", fmt::join(violations, "; ")));

  Config config = configuration(options);
  Section inner = config.root().section("inner"), hypergradient = config.root().section("hypergradient");
  const std::shared_ptr<const Estimator> estimator = make_estimator(options.estimator, hypergradient);
  const std::shared_ptr<const InnerSolver> solver =
      make_inner_solver(inner, problem, problem.initial_outer(), options.seed, /*batches=*/{});
  const auto outer = std::make_shared<const OuterAdam>(OuterAdamOptions{.lr = options.outer_lr});

  const auto uncounted = make_oracle(problem);
  const CountedOracle oracle(*uncounted);
  DoubleLoopOptions loop;
  loop.start = problem.initial_inner_depends_on_outer() ? Start::kCold : Start::kWarm;
  loop.seed = options.seed;
  const DoubleLoop algorithm(oracle, solver, estimator, outer, loop);
  DriverOptions driver;
  driver.steps = options.steps;

  MinimizeResult result;
  Watch watch;
  watch.record = [&](const Record& record, const std::vector<RollBack>&) {
    result.history.push_back(record);
    return options.callback ? options.callback(record) : Signal::kContinue;
  };
  RunResult run = Driver(algorithm, driver).run(algorithm.init(), watch);
  result.x = run.state.tensor("x");
  result.y = run.state.tensor("y");
  result.outcome = run.outcome;
  result.grade = run.worst;
  result.message = std::move(run.message);
  result.cost = run.cost;
  return result;
}

}  // namespace bilevel
