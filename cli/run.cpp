#include <filesystem>

#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "cli/commands.h"
#include "tasks/job.h"

namespace bilevel::cli {

namespace {

/// What the configuration asks for, in each of the processes; the exit status.
int run_shared(const ConfigArguments& arguments, std::string out, bool strict, const std::shared_ptr<Processes>& processes) {
  out = processes->of_first(out);
  const auto experiment = processes->all_or_none([&] {
    Config config = arguments.load();
    if (const std::string job = job_of(config); !job.empty()) {
      throw Error(fmt::format("\"{}\" is a job of several stages, which runs in one process; call it without torchrun.", job));
    }
    return std::make_unique<const Experiment>(std::move(config), make_task, processes);
  });
  RunFront front = terminal_front();
  front.strict = strict;
  if (processes->first()) {
    for (const std::string& note : experiment->task().notes) front.notice(note);
  }
  const RunResult result = run_experiment(*experiment, out, front);
  return processes->first() ? conclude(result, out) : exit_status(result);
}

}  // namespace

void add_run(CLI::App& app, Action& action, const std::shared_ptr<Processes>& processes) {
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
  command->callback([arguments, processes, &action] {
    action = [arguments, processes] {
      const std::string out = arguments->out.empty() ? default_run_directory(arguments->config.path) : arguments->out;
      if (processes) return run_shared(arguments->config, out, arguments->strict, processes);
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

void add_resume(CLI::App& app, Action& action, const std::shared_ptr<Processes>& processes) {
  auto directory = std::make_shared<std::string>();
  CLI::App* command = app.add_subcommand("resume", "Go on with an interrupted run, to the same end bit for bit.");
  command->add_option("directory", *directory, "the run's directory")->required()->type_name("DIR");
  command->footer("Example:\n  bilevel resume runs/ridge");
  command->callback([directory, processes, &action] {
    action = [directory, processes] {
      const std::string config = *directory + "/config.toml";
      if (std::filesystem::exists(config) && !job_of(Config::load(config)).empty()) {
        // Jobs write their directory when they are done, and not before.
        fmt::print(stderr, "The job in {} has ended already; nothing is left to do.\n", *directory);
        return 0;
      }
      const RunResult result = resume_experiment(*directory, terminal_front(), make_task, processes);
      return !processes || processes->first() ? conclude(result, *directory) : exit_status(result);
    };
  });
}

}  // namespace bilevel::cli
