#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "bilevel/core/config.h"
#include "tasks/experiment.h"

/// The front: one file per command. Results go to stdout, progress and messages to stderr.
namespace bilevel::cli {

/// What the command line asked for; its result is the exit status.
using Action = std::function<int()>;

/// The whole command; its exit status. With `processes`, which all call this alike, the first one writes and prints.
int command(int argc, const char* const* argv, const std::shared_ptr<Processes>& processes = nullptr);

// Each adds its command to `app`, and where that command is given puts what to do into `action`.
void add_run(CLI::App& app, Action& action, const std::shared_ptr<Processes>& processes);
void add_resume(CLI::App& app, Action& action, const std::shared_ptr<Processes>& processes);
void add_hypergrad(CLI::App& app, Action& action);
void add_doctor(CLI::App& app, Action& action);
void add_plan(CLI::App& app, Action& action);
void add_explain(CLI::App& app, Action& action);
void add_report(CLI::App& app, Action& action);
void add_new(CLI::App& app, Action& action);
void add_reproduce(CLI::App& app, Action& action);
void add_list(CLI::App& app, Action& action);
void add_selftest(CLI::App& app, Action& action);
void add_reweight(CLI::App& app, Action& action);
void add_tune(CLI::App& app, Action& action);
void add_predict(CLI::App& app, Action& action);

/// The jobs of a configuration; the exit status.
int reweight(Config config, std::string out, bool json, bool strict);
int tune(Config config, std::string out, bool json);

/// `text` as a string of TOML.
std::string quoted(const std::string& text);
/// `directory` without a slash at its end, and `suffix`: `runs/a/` and `runs/a` are the same directory.
std::string beside(const std::string& directory, const std::string& suffix);

/// A configuration and what the command line changes in it.
struct ConfigArguments {
  std::string path;
  std::vector<std::string> sets;
  std::string seed, device, threads;  // empty: as the file says

  void add_to(CLI::App& command);
  Config load() const;
};

/// A progress bar on stderr, Ctrl-C as an interruption, one line for what is worth saying.
RunFront terminal_front();
int exit_status(const RunResult& result);
/// Writes report.html, prints the summary, and gives the exit status.
int conclude(const RunResult& result, const std::string& directory);

int terminal_width();
bool color_on_stdout();

std::string version();

}  // namespace bilevel::cli
