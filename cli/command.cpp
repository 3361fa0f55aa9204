#include <cstdio>
#include <exception>

#include <c10/util/Exception.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "cli/commands.h"

namespace bilevel::cli {
namespace {

enum ExitStatus { kDone = 0, kFailed = 1, kMisuse = 2 };

int run(const Action& action) {
  try {
    return action();
  } catch (const Error& error) {
    fmt::print(stderr, "bilevel: {}\n", error.what());
    return kMisuse;
  } catch (const FailedElsewhere&) {  // the process that failed has told
  } catch (const c10::Error& error) {
    fmt::print(stderr, "bilevel: LibTorch failed: {}\n", error.what_without_backtrace());
  } catch (const std::exception& error) {
    fmt::print(stderr, "bilevel: {}\n", error.what());
  }
  return kFailed;
}

}  // namespace

int command(int argc, const char* const* argv, const std::shared_ptr<Processes>& processes) {
  CLI::App app("Nested (bilevel) optimisation: learn hyperparameters, weights of data and more by hypergradient.", "bilevel");
  app.require_subcommand(1);
  app.set_version_flag("--version", version, "Print versions, threads and SIMD level.");
  app.footer("Example:\n  bilevel new supervised > ridge.toml\n  bilevel run ridge.toml\n\n`bilevel COMMAND --help` says more.");
  Action action;
  add_reweight(app, action);
  add_tune(app, action);
  add_predict(app, action);
  add_run(app, action, processes);
  add_resume(app, action, processes);
  add_hypergrad(app, action);
  add_doctor(app, action);
  add_plan(app, action);
  add_explain(app, action);
  add_report(app, action);
  add_reproduce(app, action);
  add_new(app, action);
  add_list(app, action);
  add_selftest(app, action);
  const bool silent = processes && !processes->first();  // all say the same
  try {
    app.parse(argc, argv);
    if (processes && !app.got_subcommand("run") && !app.got_subcommand("resume")) {
      throw CLI::ValidationError(
          "of the commands `run` and `resume` alone are shared among processes; call the others without torchrun");
    }
  } catch (const CLI::ParseError& error) {
    if (silent) return error.get_exit_code() == 0 ? kDone : kMisuse;
    return app.exit(error) == 0 ? kDone : kMisuse;
  }
  return run(action);
}

}  // namespace bilevel::cli
