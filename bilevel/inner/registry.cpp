#include "bilevel/inner/registry.h"

#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/core/stream.h"
#include "bilevel/inner/adam.h"
#include "bilevel/inner/lbfgs.h"
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
  };
  return rows;
}

}  // namespace

const std::vector<RuleRow>& rules() {
  static const std::vector<RuleRow> rows = [] {
    std::vector<RuleRow> all;
    for (const auto& row : table()) all.push_back(row.row);
    return all;
  }();
  return rows;
}

std::unique_ptr<UpdateRule> make_rule(const std::string& name, Section& section, const std::vector<std::string>& learned) {
  std::vector<std::string> known;
  for (const auto& [row, make] : table()) {
    if (row.name == name) return make(section, learned);
    known.push_back(row.name);
  }
  throw Error(fmt::format("make_rule: there is no rule \"{}\".{}", name, suggestion(name, known)));
}

std::unique_ptr<InnerSolver> make_inner_solver(Section& section, const Problem& problem, const at::Tensor& x, uint64_t seed,
                                               const at::Tensor& batches) {
  std::string kind = "rule";
  section.read_choice("solver", kind, {"rule", "lbfgs"});
  if (kind == "lbfgs") {
    if (problem.has_rule_hyperparameters()) {
      section.fail("solver", "x determines hyperparameters of an update rule (problem.hyperparameters), which lbfgs has not.");
    }
    LbfgsOptions options;
    read(section, options);
    return std::make_unique<Lbfgs>(std::move(options));
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
    if (options.batch < samples) plan = BatchPlan::shuffled(samples, options.batch, Stream(seed, "inner batches"));
  }
  return std::make_unique<RuleSolver>(std::move(rule), options, std::move(plan));
}

}  // namespace bilevel
