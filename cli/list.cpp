#include <fmt/format.h>

#include <algorithm>

#include "bilevel/algorithm/registry.h"
#include "bilevel/hypergrad/registry.h"
#include "bilevel/inner/registry.h"
#include "bilevel/linear/registry.h"
#include "bilevel/outer/registry.h"
#include "cli/commands.h"
#include "studies/registry.h"

namespace bilevel::cli {
namespace {

struct Entry {
  std::string name, summary;
};

template <class Rows>
std::vector<Entry> entries_of(const Rows& rows) {
  std::vector<Entry> entries;
  for (const auto& row : rows) {
    if constexpr (requires { row.summary; }) {
      entries.push_back({row.name, row.summary});
    } else {
      entries.push_back({row.name, row.description});
    }
  }
  return entries;
}

std::vector<Entry> entries_of(const std::vector<Study>& rows) {
  std::vector<Entry> entries;
  for (const Study& study : rows) entries.push_back({study.slug, read_study(study).first.title});
  return entries;
}

struct Kind {
  std::string name, heading;
  std::vector<Entry> entries;
};

std::vector<Kind> kinds() {
  return {{"tasks", "Tasks (problem.task)", entries_of(tasks())},
          {"estimators", "Hypergradient estimators (hypergradient.estimator)", entries_of(estimators())},
          {"solvers", "Linear solvers (hypergradient.solver)", entries_of(linear_solvers())},
          {"rules", "Inner update rules (inner.rule)", entries_of(rules())},
          {"algorithms", "Algorithms (run.algorithm)", entries_of(algorithms())},
          {"studies", "Studies (bilevel reproduce)", entries_of(studies())}};
}

void print_entries(const Kind& kind) {
  size_t width = 0;
  for (const Entry& entry : kind.entries) width = std::max(width, entry.name.size());
  for (const Entry& entry : kind.entries) fmt::print("{:<{}}  {}\n", entry.name, width, entry.summary);
}

}  // namespace

void add_list(CLI::App& app, Action& action) {
  auto wanted = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("list", "List what can be named in a configuration, and the studies.");
  command->add_option("kind", *wanted, "tasks, estimators, solvers, rules, algorithms or studies; all of them unless given")
      ->check(CLI::IsMember({"tasks", "estimators", "solvers", "rules", "algorithms", "studies"}))
      ->type_name("KIND");
  command->footer("Example:\n  bilevel list estimators");
  command->callback([wanted, &action] {
    action = [wanted] {
      bool first = true;
      for (const Kind& kind : kinds()) {
        if (!wanted->empty() && kind.name != *wanted) continue;
        if (wanted->empty()) fmt::print("{}{}\n", std::exchange(first, false) ? "" : "\n", kind.heading);
        print_entries(kind);
      }
      return 0;
    };
  });
}

void add_new(CLI::App& app, Action& action) {
  auto task = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("new", "Print a commented configuration to start from; it runs as it is.");
  command->add_option("task", *task, "a task of `bilevel list tasks`")->required()->type_name("TASK");
  command->footer("Example:\n  bilevel new supervised > ridge.toml && bilevel run ridge.toml");
  command->callback([task, &action] {
    action = [task] {
      fmt::print("{}", task_template(*task));
      return 0;
    };
  });
}

}  // namespace bilevel::cli
