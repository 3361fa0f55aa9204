#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/report/explain_report.h"
#include "bilevel/report/html.h"
#include "bilevel/report/run_report.h"
#include "bilevel/report/terminal.h"
#include "cli/commands.h"
#include "tasks/examine.h"
#include "tasks/job.h"

namespace bilevel::cli {
namespace {

/// All that was explained here so far.
Report report_of(const std::string& directory) {
  Report report;
  report.title = directory;
  for (const Explanation& one : kept_explanations(directory)) report.sections.push_back(explanation_section(one));
  return report;
}

/// Into the run's report, or beside that of a job of several stages, which is the job's own. A directory that cannot be written
/// is no reason to say nothing.
void keep(const std::string& directory, const Explanation& explanation) {
  try {
    keep_explanation(directory, explanation);
    const bool job = !job_of(Config::load(directory + "/config.toml")).empty();
    const std::string page = directory + (job ? "/explanations.html" : "/report.html");
    write_file(page, render_html(job ? report_of(directory) : run_report(directory)));
    fmt::print(stderr, "It is in {} too.\n", page);
  } catch (const Error& error) {
    fmt::print(stderr, "The report was left as it is: {}\n", error.what());
  }
}

}  // namespace

void add_explain(CLI::App& app, Action& action) {
  struct Arguments {
    ExplainRequest request;
    int64_t step = -1;
    bool json = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command =
      app.add_subcommand("explain", "Say why a hyperparameter moved: its hypergradient by layer and by validation sample.");
  command->add_option("directory", arguments->request.directory, "the run's directory")->required()->type_name("DIR");
  command
      ->add_option("--hyperparameter", arguments->request.hyperparameter, "which one, by its name in layout.json, such as l2[3]")
      ->required()
      ->type_name("NAME[i]");
  command->add_option("--step", arguments->step, "x after so many updates; the run's last point unless given")
      ->type_name("K")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--top", arguments->request.options.most_samples, "how many samples are listed; 20 unless given")
      ->type_name("N")
      ->check(CLI::NonNegativeNumber);
  command->add_flag("--json", arguments->json, "print one JSON object and nothing else");
  command->footer("Example:\n  bilevel explain runs/ridge --hyperparameter l2[3]");
  command->callback([arguments, &action] {
    action = [arguments] {
      ExplainRequest& request = arguments->request;
      request.progress = progress_on(stderr);
      if (arguments->step >= 0) request.step = arguments->step;
      const Explanation explanation = explain_run(request);
      if (arguments->json) {
        fmt::print("{}\n", to_json(explanation));
      } else {
        Report report;
        report.title = request.directory;
        report.sections.push_back(explanation_section(explanation));
        fmt::print("{}", render_terminal(report, terminal_width(), color_on_stdout()));
      }
      keep(request.directory, explanation);
      return explanation.grade == Grade::kBad ? 1 : 0;
    };
  });
}

}  // namespace bilevel::cli
