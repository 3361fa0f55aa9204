#include <chrono>
#include <filesystem>

#include <fmt/format.h>

#include "bilevel/core/bytes.h"
#include "bilevel/report/plan_report.h"
#include "bilevel/report/terminal.h"
#include "cli/commands.h"
#include "tasks/examine.h"

namespace bilevel::cli {

void add_plan(CLI::App& app, Action& action) {
  struct Arguments {
    ConfigArguments config;
    bool json = false;
    std::string memory;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("plan", "Forecast seconds and memory of a run, and fit it into a limit.");
  arguments->config.add_to(*command);
  command->add_flag("--json", arguments->json, "print one JSON object and nothing else");
  command->add_option("--memory", arguments->memory, "most that the process may hold, such as 2GB or 800MiB")->type_name("BYTES");
  command->footer("Example:\n  bilevel plan ridge.toml --memory 2GB");
  command->callback([arguments, &action] {
    action = [arguments] {
      PlanOptions options;
      if (!arguments->memory.empty()) options.limit = parse_bytes(arguments->memory);
      double load_seconds = 0;
      const Plan plan = [&] {
        StageProgress progress(progress_on(stderr));
        options.progress = [&progress](const std::string& doing, double fraction) { progress.update(doing, fraction); };
        const PlanMaker make = plan_maker(arguments->config.load());
        const PlanMaker timed = [&](const std::vector<std::string>& sets) {
          const auto began = std::chrono::steady_clock::now();
          PlanSubject subject = make(sets);
          if (load_seconds == 0) {
            load_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
          }
          return subject;
        };
        return make_plan(timed, options);
      }();
      if (arguments->json) {
        fmt::print("{}\n", plan_json(plan, load_seconds));
      } else {
        const Report report = plan_report(plan, std::filesystem::path(arguments->config.path).filename().string());
        fmt::print("{}", render_terminal(report, terminal_width(), color_on_stdout()));
        if (const std::string toml = planned_toml(plan); !toml.empty())
          fmt::print("\nTo paste into the configuration:\n\n{}", toml);
      }
      return plan.choice ? 0 : 1;
    };
  });
}

}  // namespace bilevel::cli
