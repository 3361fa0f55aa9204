#include <csignal>
#include <cstdio>
#include <exception>

#include <dlfcn.h>

#include <c10/util/Exception.h>
#include <c10/util/Flags.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "cli/commands.h"

C10_DECLARE_int(caffe2_log_level);

namespace {

enum ExitStatus { kDone = 0, kFailed = 1, kMisuse = 2 };

int run(const bilevel::cli::Action& action) {
  try {
    return action();
  } catch (const bilevel::Error& error) {
    fmt::print(stderr, "bilevel: {}\n", error.what());
    return kMisuse;
  } catch (const c10::Error& error) {
    fmt::print(stderr, "bilevel: LibTorch failed: {}\n", error.what_without_backtrace());
  } catch (const std::exception& error) {
    fmt::print(stderr, "bilevel: {}\n", error.what());
  }
  return kFailed;
}

}  // namespace

int main(int argc, char** argv) {
  dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL);  // of a CUDA build, where a wheel's command is not linked with it
  FLAGS_caffe2_log_level = 2;  // errors only: stderr is for what this program has to say
  CLI::App app("Nested (bilevel) optimisation: learn hyperparameters, weights of data and more by hypergradient.", "bilevel");
  app.require_subcommand(1);
  app.set_version_flag("--version", bilevel::cli::version, "Print versions, threads and SIMD level.");
  app.footer("Example:\n  bilevel new supervised > ridge.toml\n  bilevel run ridge.toml\n\n`bilevel COMMAND --help` says more.");
  bilevel::cli::Action action;
  bilevel::cli::add_reweight(app, action);
  bilevel::cli::add_tune(app, action);
  bilevel::cli::add_predict(app, action);
  bilevel::cli::add_run(app, action);
  bilevel::cli::add_resume(app, action);
  bilevel::cli::add_hypergrad(app, action);
  bilevel::cli::add_doctor(app, action);
  bilevel::cli::add_plan(app, action);
  bilevel::cli::add_explain(app, action);
  bilevel::cli::add_report(app, action);
  bilevel::cli::add_reproduce(app, action);
  bilevel::cli::add_new(app, action);
  bilevel::cli::add_list(app, action);
  bilevel::cli::add_selftest(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kDone : kMisuse;
  }
  return run(action);
}
