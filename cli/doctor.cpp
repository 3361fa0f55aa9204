#include <filesystem>

#include <fmt/format.h>

#include "bilevel/core/file.h"
#include "bilevel/report/doctor_report.h"
#include "bilevel/report/html.h"
#include "bilevel/report/terminal.h"
#include "cli/commands.h"
#include "tasks/examine.h"

namespace bilevel::cli {

void add_doctor(CLI::App& app, Action& action) {
  struct Arguments {
    ConfigArguments config;
    bool json = false;
    std::string html;
    int64_t after = 0;
    double seconds = DoctorOptions{}.seconds;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      app.add_subcommand("doctor", "Try all applicable estimators on this problem: error, time, memory, and what to take.");
  arguments->config.add_to(*command);
  command->add_flag("--json", arguments->json, "print one JSON object and nothing else");
  command->add_option("--html", arguments->html, "write the report with its charts as one HTML file")->type_name("FILE");
  command->add_option("--after", arguments->after, "look after so many outer steps; 0, the start point, unless given")
      ->type_name("N");
  command->add_option("--seconds", arguments->seconds, "about how long all of it may take; 45 unless given")->type_name("S");
  command->footer("Example:\n  bilevel doctor ridge.toml --html doctor.html");
  command->callback([arguments, &action] {
    action = [arguments] {
      DoctorOptions options;
      options.seconds = arguments->seconds;
      const Diagnosis diagnosis = [&] {
        StageProgress progress(progress_on(stderr));
        options.progress = [&progress](const std::string& doing, double fraction) { progress.update(doing, fraction); };
        return examine(arguments->config.load(), arguments->after, options);
      }();
      Report report = doctor_report(diagnosis, std::filesystem::path(arguments->config.path).filename().string());
      if (!arguments->html.empty()) write_file(arguments->html, render_html(report));
      if (arguments->json) {
        fmt::print("{}\n", doctor_json(diagnosis));
      } else {
        // What each says of itself is for the page.
        std::erase_if(report.sections, [](const Report::Section& section) { return section.title == "Messages"; });
        fmt::print("{}", render_terminal(report, terminal_width(), color_on_stdout()));
        if (const std::string toml = recommended_toml(diagnosis); !toml.empty()) {
          fmt::print("\nTo paste into the configuration:\n\n{}", toml);
        }
        if (!arguments->html.empty()) fmt::print("\nThe whole report: {}\n", arguments->html);
      }
      return diagnosis.best ? 0 : 1;
    };
  });
}

}  // namespace bilevel::cli
