#include <fmt/format.h>

#include "bilevel/core/file.h"
#include "bilevel/report/html.h"
#include "bilevel/report/run_report.h"
#include "cli/commands.h"

namespace bilevel::cli {

void add_report(CLI::App& app, Action& action) {
  struct Arguments {
    std::string directory, html;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("report", "Show what happened in a run.");
  command->add_option("directory", arguments->directory, "the run's directory")->required()->type_name("DIR");
  command->add_option("--html", arguments->html, "write one HTML file that needs nothing else")->type_name("FILE");
  command->footer("Example:\n  bilevel report runs/ridge --html ridge.html");
  command->callback([arguments, &action] {
    action = [arguments] {
      if (!arguments->html.empty()) write_file(arguments->html, render_html(run_report(arguments->directory)));
      fmt::print("{}", terminal_summary(arguments->directory, terminal_width(), color_on_stdout()));
      return 0;
    };
  });
}

}  // namespace bilevel::cli
