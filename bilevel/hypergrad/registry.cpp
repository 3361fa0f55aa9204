#include "bilevel/hypergrad/registry.h"

#include <fmt/format.h>

#include <functional>
#include <set>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/darts.h"
#include "bilevel/hypergrad/evograd.h"
#include "bilevel/hypergrad/fisher.h"
#include "bilevel/hypergrad/forward.h"
#include "bilevel/hypergrad/functional.h"
#include "bilevel/hypergrad/identity.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/moreau.h"
#include "bilevel/hypergrad/one_step.h"
#include "bilevel/hypergrad/penalty.h"
#include "bilevel/hypergrad/sama.h"
#include "bilevel/hypergrad/t1_t2.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/hypergrad/zeroth_order.h"
#include "bilevel/linear/registry.h"

namespace bilevel {
namespace {

template <class T, class Options>
std::unique_ptr<Estimator> make(Section& section) {
  Options options;
  read(section, options);
  return std::make_unique<T>(options);
}

std::unique_ptr<Estimator> make_implicit(Section& section) {
  ImplicitOptions options;
  read(section, options);
  std::string solver = "cg";
  section.read("solver", solver);
  auto linear = make_linear_solver(solver, section);
  auto minres = options.on_indefinite == OnIndefinite::kMinres ? make_linear_solver("minres", section) : nullptr;
  return std::make_unique<Implicit>(std::move(linear), options, std::move(minres));
}

std::unique_ptr<Estimator> make_moreau(Section& section) {
  MoreauOptions options;
  read(section, options);
  std::string solver = "cg";
  section.read("solver", solver);
  return std::make_unique<Moreau>(make_linear_solver(solver, section), options);
}

struct Maker {
  EstimatorRow row;
  std::function<std::unique_ptr<Estimator>(Section&)> make;
};

const std::vector<Maker>& makers() {
  static const std::vector<Maker> all = {
      {{"unrolled", "reverse mode through the steps of the inner solve, or its last K; exact for F_T"},
       make<Unrolled, UnrolledOptions>},
      {{"forward", "forward mode through the inner solve, all columns of x at once; exact for F_T, memory independent of T"},
       make<Forward, ForwardOptions>},
      {{"implicit", "implicit function theorem with a linear solver (cg, neumann, dense, …); exact for F at the inner optimum"},
       make_implicit},
      {{"fisher", "the inner Fisher information, from scores along the inner solve, for the Hessian; no second derivatives by y"},
       make<Fisher, FisherOptions>},
      {{"one-step", "derivative of the last inner step only"}, [](Section&) { return std::make_unique<OneStep>(); }},
      {{"t1-t2", "one gradient step for the inverse Hessian, cross product before the last step"},
       [](Section&) { return std::make_unique<T1T2>(); }},
      {{"identity", "step size × identity for the inverse Hessian, everything at the solution"},
       [](Section&) { return std::make_unique<Identity>(); }},
      {{"darts", "t1-t2 by central differences: no second derivatives"}, [](Section&) { return std::make_unique<Darts>(); }},
      {{"sama", "identity for the Hessian with the last step's rule (Adam's diagonal) kept; no second derivatives"},
       make<Sama, SamaOptions>},
      {{"evograd", "derivative of an evolutionary step: copies of y weighed by their inner loss; no second derivatives"},
       make<EvoGrad, EvoGradOptions>},
      {{"moreau", "the inner solve taken for a proximal step from y₀(x): its derivative by products with H at the end alone"},
       make_moreau},
      {{"penalty", "the value function of the inner problem with f as a penalty, by differences: first derivatives alone"},
       make<Penalty, PenaltyOptions>},
      {{"functional",
        "adjoint as a function of samples, a head in closed form or a network; no product with the Hessian by the weights"},
       make<Functional, FunctionalOptions>},
      {{"zeroth-order", "values of F_T alone: antithetic Gaussian differences around x"}, make<ZerothOrder, ZerothOrderOptions>},
  };
  return all;
}

}  // namespace

const std::vector<EstimatorRow>& estimators() {
  static const std::vector<EstimatorRow> rows = [] {
    std::vector<EstimatorRow> found;
    for (const Maker& maker : makers()) found.push_back(maker.row);
    return found;
  }();
  return rows;
}

std::unique_ptr<Estimator> make_estimator(const std::string& name, Section& section) {
  std::vector<std::string> names;
  for (const Maker& maker : makers()) {
    if (maker.row.name == name) return maker.make(section);
    names.push_back(maker.row.name);
  }
  section.fail("estimator", fmt::format("there is no estimator \"{}\".{}", name, suggestion(name, names)));
}

std::vector<std::string> estimator_keys() {
  std::set<std::string> keys;
  const auto take = [&keys](const std::string& name, const std::string& chosen) {
    Section section = Config::parse(chosen, "keys").root();
    make_estimator(name, section);
    for (const std::string& key : section.keys()) keys.insert(key);
  };
  for (const Maker& maker : makers()) take(maker.row.name, "");
  for (const SolverRow& row : linear_solvers()) take("implicit", fmt::format("solver = \"{}\"", row.name));
  take("functional", "adjoint = \"network\"");
  return {keys.begin(), keys.end()};
}

}  // namespace bilevel
