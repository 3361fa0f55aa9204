#include <filesystem>

#include <fmt/format.h>

#include "cli/commands.h"
#include "tasks/job.h"

namespace bilevel::cli {

void add_run(CLI::App& app, Action& action) {
  struct Arguments {
    ConfigArguments config;
    std::string out;
    bool strict = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* command = app.add_subcommand("run", "Run a configuration and leave its results in a directory.");
  arguments->config.add_to(*command);
  command->add_option("--out", arguments->out, "the run's directory, new or empty; runs/<name of CONFIG>-<n> unless given")
      ->type_name("DIR");
  command->add_flag("--strict", arguments->strict, "end with the first hypergradient whose status is BAD");
  command->footer(
      "Example:\n  bilevel new supervised > ridge.toml\n  bilevel run ridge.toml --out runs/ridge --set outer.steps=30");
  command->callback([arguments, &action] {
    action = [arguments] {
      const std::string out = arguments->out.empty() ? default_run_directory(arguments->config.path) : arguments->out;
      RunDirectory::check_free(out);
      Config config = arguments->config.load();
      const std::string job = job_of(config);
      if (job == "reweight") return reweight(std::move(config), out, /*json=*/false, arguments->strict);
      if (job == "tune") return tune(std::move(config), out, /*json=*/false);
      const Experiment experiment(std::move(config));
      RunFront front = terminal_front();
      front.strict = arguments->strict;
      for (const std::string& note : experiment.task().notes) front.notice(note);
      return conclude(run_experiment(experiment, out, front), out);
    };
  });
}

void add_resume(CLI::App& app, Action& action) {
  auto directory = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("resume", "Go on with an interrupted run, to the same end bit for bit.");
  command->add_option("directory", *directory, "the run's directory")->required()->type_name("DIR");
  command->footer("Example:\n  bilevel resume runs/ridge");
  command->callback([directory, &action] {
    action = [directory] {
      const std::string config = *directory + "/config.toml";
      if (std::filesystem::exists(config) && !job_of(Config::load(config)).empty()) {
        // Jobs write their directory when they are done, and not before.
        fmt::print(stderr, "The job in {} has ended already; nothing is left to do.\n", *directory);
        return 0;
      }
      return conclude(resume_experiment(*directory, terminal_front()), *directory);
    };
  });
}

}  // namespace bilevel::cli
