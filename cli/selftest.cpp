#include "tasks/selftest.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdio>

#include "bilevel/core/guards.h"
#include "cli/commands.h"

namespace bilevel::cli {

void add_selftest(CLI::App& app, Action& action) {
  CLI::App* command = app.add_subcommand("selftest", "Check this build against numbers known from outside; under a minute.");
  command->footer("Example:\n  bilevel selftest");
  command->callback([&action] {
    action = [] {
      const ThreadsGuard one(1);  // the problems are small: on a busy machine a second thread does nothing but wait
      const auto began = std::chrono::steady_clock::now();
      const std::vector<Check> checks = outside_checks();
      size_t passed = 0;
      for (const Check& check : checks) {
        const CheckResult result = run_check(check);
        passed += result.passed ? 1 : 0;
        fmt::print("{}  {} ({})\n        {}\n", result.passed ? "ok    " : "FAILED", check.name, check.source, result.detail);
        std::fflush(stdout);
      }
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
      fmt::print("{} of {} checks passed in {:.1f} s.\n", passed, checks.size(), seconds);
      return passed == checks.size() ? 0 : 1;
    };
  });
}

}  // namespace bilevel::cli
