#include "bilevel/hypergrad/registry.h"

#include <fmt/format.h>

#include <functional>

#include "bilevel/core/error.h"
#include "bilevel/hypergrad/darts.h"
#include "bilevel/hypergrad/identity.h"
#include "bilevel/hypergrad/implicit.h"
#include "bilevel/hypergrad/one_step.h"
#include "bilevel/hypergrad/t1_t2.h"
#include "bilevel/hypergrad/unrolled.h"
#include "bilevel/linear/registry.h"

namespace bilevel {
namespace {

std::unique_ptr<Estimator> make_unrolled(Section& section) {
  UnrolledOptions options;
  read(section, options);
  return std::make_unique<Unrolled>(options);
}

std::unique_ptr<Estimator> make_implicit(Section& section) {
  ImplicitOptions options;
  read(section, options);
  std::string solver = "cg";
  section.read("solver", solver);
  return std::make_unique<Implicit>(make_linear_solver(solver, section), options);
}

struct Maker {
  EstimatorRow row;
  std::function<std::unique_ptr<Estimator>(Section&)> make;
};

const std::vector<Maker>& makers() {
  static const std::vector<Maker> all = {
      {{"unrolled", "reverse mode through the steps of the inner solve, or its last K; exact for F_T"}, make_unrolled},
      {{"implicit", "implicit function theorem with a linear solver (cg, neumann, dense, …); exact for F at the inner optimum"},
       make_implicit},
      {{"one-step", "derivative of the last inner step only"}, [](Section&) { return std::make_unique<OneStep>(); }},
      {{"t1-t2", "one gradient step for the inverse Hessian, cross product before the last step"},
       [](Section&) { return std::make_unique<T1T2>(); }},
      {{"identity", "step size × identity for the inverse Hessian, everything at the solution"},
       [](Section&) { return std::make_unique<Identity>(); }},
      {{"darts", "t1-t2 by central differences: no second derivatives"}, [](Section&) { return std::make_unique<Darts>(); }},
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

}  // namespace bilevel
