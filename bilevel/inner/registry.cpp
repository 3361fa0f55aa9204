#include "bilevel/inner/registry.h"

#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/inner/adadelta.h"
#include "bilevel/inner/adagrad.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/adamax.h"
#include "bilevel/inner/anderson.h"
#include "bilevel/inner/clipped.h"
#include "bilevel/inner/closed_form.h"
#include "bilevel/inner/lbfgs.h"
#include "bilevel/inner/newton_cg.h"
#include "bilevel/inner/prox_newton.h"
#include "bilevel/inner/proximal_gradient.h"
#include "bilevel/inner/rmsprop.h"
#include "bilevel/inner/sampled.h"
#include "bilevel/inner/sgd.h"

namespace bilevel {
namespace {

using Make = std::unique_ptr<UpdateRule> (*)(Section&, const std::vector<std::string>&);

template <class Rule, class Options>
std::unique_ptr<UpdateRule> make_with(Options options, Section& section, const std::vector<std::string>& learned) {
  for (const auto& name : learned) {
    if (name != "lr" && section.has(name)) {
      section.fail(name, "it is determined by x (problem.hyperparameters), and cannot be fixed too.");
    }
  }
  options.learned = learned;
  read(section, options);
  return std::make_unique<Rule>(std::move(options));
}

struct Row {
  RuleRow row;
  Make make;
};

const std::vector<Row>& table() {
  static const std::vector<Row> rows{
      {{"sgd", "gradient descent, with momentum, dampening, Nesterov's momentum and coupled weight decay"},
       [](Section& section, const std::vector<std::string>& learned) {
         return make_with<SgdRule>(SgdRuleOptions{}, section, learned);
       }},
      {{"adam", "Adam (Kingma & Ba 2015), with coupled weight decay; amsgrad"},
       [](Section& section, const std::vector<std::string>& learned) {
         return make_with<AdamRule>(AdamRuleOptions{}, section, learned);
       }},
      {{"adamw", "Adam with decoupled weight decay (Loshchilov & Hutter 2019); amsgrad"},
       [](Section& section, const std::vector<std::string>& learned) {
         return make_with<AdamRule>(AdamRuleOptions::adamw(), section, learned);
       }},
      {{"rmsprop", "RMSprop (Tieleman & Hinton 2012), centred or not, with momentum and coupled weight decay"},
       [](Section& section, const std::vector<std::string>& learned) {
         return make_with<RmspropRule>(RmspropRuleOptions{}, section, learned);
       }},
      {{"adagrad", "Adagrad (Duchi, Hazan & Singer 2011), with coupled weight decay"},
       [](Section& section, const std::vector<std::string>& learned) {
         return make_with<AdagradRule>(AdagradRuleOptions{}, section, learned);
       }},
      {{"adadelta", "Adadelta (Zeiler 2012), with coupled weight decay"},
       [](Section& section, const std::vector<std::string>& learned) {
         return make_with<AdadeltaRule>(AdadeltaRuleOptions{}, section, learned);
       }},
      {{"adamax", "Adam with the maximum norm (Kingma & Ba 2015), with coupled weight decay"},
       [](Section& section, const std::vector<std::string>& learned) {
         return make_with<AdamaxRule>(AdamaxRuleOptions{}, section, learned);
       }},
  };
  return rows;
}

using MakeSolver = std::unique_ptr<InnerSolver> (*)(Section&);

template <class Solver, class Options>
std::unique_ptr<InnerSolver> make_solver(Options options, Section& section) {
  read(section, options);
  return std::make_unique<Solver>(std::move(options));
}

struct SolverRow {
  RuleRow row;
  bool constrained;  // whether it minds constraints on y
  MakeSolver make;
};

const std::vector<SolverRow>& solver_table() {
  static const std::vector<SolverRow> rows{
      {{"lbfgs", "L-BFGS with a strong Wolfe line search"},
       false,
       [](Section& section) { return make_solver<Lbfgs>(LbfgsOptions{}, section); }},
      {{"newton-cg", "Newton's method with truncated conjugate gradients"},
       false,
       [](Section& section) { return make_solver<NewtonCg>(NewtonCgOptions{}, section); }},
      {{"prox", "FISTA with restart, for an l1 penalty, bounds and linear equalities on y"},
       true,
       [](Section& section) { return make_solver<ProximalGradient>(ProximalGradientOptions{}, section); }},
      {{"projected-gradient", "the same without acceleration"},
       true,
       [](Section& section) {
         ProximalGradientOptions options;
         options.accelerated = false;
         return make_solver<ProximalGradient>(options, section);
       }},
      {{"prox-newton", "Newton's method on the elements that an l1 penalty and bounds on y leave free"},
       true,
       [](Section& section) { return make_solver<ProxNewton>(ProxNewtonOptions{}, section); }},
      {{"closed-form", "one linear solve, for losses that are quadratic in y"},
       false,
       [](Section& section) { return make_solver<ClosedForm>(ClosedFormOptions{}, section); }},
      {{"anderson", "Anderson acceleration of y ← y − lr r, for roots, fixed points and saddles"},
       false,
       [](Section& section) { return make_solver<Anderson>(AndersonOptions{}, section); }},
  };
  return rows;
}

std::vector<RuleRow> rows_of(const auto& table) {
  std::vector<RuleRow> all;
  for (const auto& row : table) all.push_back(row.row);
  return all;
}

}  // namespace

const std::vector<RuleRow>& rules() {
  static const std::vector<RuleRow> rows = rows_of(table());
  return rows;
}

const std::vector<RuleRow>& inner_solvers() {
  static const std::vector<RuleRow> rows = [] {
    std::vector<RuleRow> all = rows_of(solver_table());
    all.push_back({"sampled", "one of several solvers (candidates), drawn anew for each solve"});
    return all;
  }();
  return rows;
}

std::unique_ptr<UpdateRule> make_rule(const std::string& name, Section& section, const std::vector<std::string>& learned) {
  std::vector<std::string> known;
  for (const auto& [row, make] : table()) {
    known.push_back(row.name);
    if (row.name != name) continue;
    auto rule = make(section, learned);
    double clip_norm = 0;  // none
    section.read("clip_norm", clip_norm);
    if (!(clip_norm >= 0)) section.fail("clip_norm", fmt::format("{} must be at least 0 (0: no clipping).", clip_norm));
    if (clip_norm == 0) return rule;
    return std::make_unique<ClippedRule>(std::move(rule), clip_norm);
  }
  throw Error(fmt::format("make_rule: there is no rule \"{}\".{}", name, suggestion(name, known)));
}

std::unique_ptr<InnerSolver> make_inner_solver(Section& section, const Problem& problem, const at::Tensor& x, uint64_t seed,
                                               const at::Tensor& batches) {
  std::string kind = "rule";
  std::vector<std::string> kinds{"rule"};
  for (const auto& row : inner_solvers()) kinds.push_back(row.name);
  section.read_choice("solver", kind, kinds);
  if (kind == "sampled") {
    if (!section.is_table("candidates")) {
      section.fail("candidates",
                   "\"sampled\" draws one of several solvers: a table for each, [inner.candidates.NAME], would be right.");
    }
    Section candidates = section.section("candidates");
    std::vector<std::unique_ptr<InnerSolver>> all;
    for (const std::string& name : candidates.keys()) {
      Section one = candidates.section(name);
      all.push_back(make_inner_solver(one, problem, x, seed, batches));
      one.finish();
    }
    return std::make_unique<SampledSolver>(std::move(all), seed);
  }
  for (const auto& [row, constrained, make] : solver_table()) {
    if (row.name != kind) continue;
    if (problem.has_rule_hyperparameters()) {
      section.fail(
          "solver",
          fmt::format("x determines hyperparameters of an update rule (problem.hyperparameters), which {} has not.", kind));
    }
    if (problem.has_inner_constraints() && !constrained) {
      section.fail("solver", fmt::format("{} knows nothing of an l1 penalty or of constraints on y; use \"prox\".", kind));
    }
    return make(section);
  }
  if (problem.has_inner_constraints()) {
    section.fail("solver", "an update rule knows nothing of an l1 penalty or of constraints on y; use \"prox\".");
  }
  std::vector<std::string> names, learned;
  for (const auto& row : rules()) names.push_back(row.name);
  std::string name = "sgd";
  section.read_choice("rule", name, names);
  bool lr_learned = false;
  if (problem.has_rule_hyperparameters()) {
    for (const auto& [hyperparameter, value] : problem.rule_hyperparameters(x, 0)) {
      learned.push_back(hyperparameter);
      lr_learned = lr_learned || hyperparameter == "lr";
    }
  }
  if (lr_learned && section.is_number("lr")) {
    section.fail("lr", "it is determined by x (problem.hyperparameters), and cannot be fixed too.");
  }
  auto rule = make_rule(name, section, learned);
  RuleSolverOptions options;
  options.seed = seed;
  read(section, options);

  const int64_t samples = problem.inner_samples();
  BatchPlan plan = BatchPlan::full();
  if (batches.defined()) {
    if (options.batch > 0) section.fail("batch", "the minibatches are fixed by batches already.");
    plan = BatchPlan::fixed(batches);
  } else if (options.batch > 0) {
    if (samples == 0) section.fail("batch", "this problem's inner loss takes no minibatches.");
    if (options.batch > samples)
      section.fail("batch", fmt::format("{} is more than the {} samples there are.", options.batch, samples));
    plan = BatchPlan::of_size(samples, options.batch, Stream(seed, "inner batches"));
  }
  return std::make_unique<RuleSolver>(std::move(rule), options, std::move(plan));
}

}  // namespace bilevel
