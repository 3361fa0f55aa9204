#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include <sys/ioctl.h>
#include <unistd.h>

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <ATen/core/TensorBase.h>
#include <ATen/native/DispatchStub.h>
#include <fmt/format.h>
#include <torch/version.h>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/report/html.h"
#include "bilevel/report/run_report.h"
#include "cli/commands.h"

namespace bilevel::cli {
namespace {

std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler may touch nothing else");

void watch_for_interruption() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted = true; };
  action.sa_flags = static_cast<int>(SA_RESETHAND);  // a second Ctrl-C ends the process at once
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

}  // namespace

void ConfigArguments::add_to(CLI::App& command) {
  command.add_option("config", path, "the configuration, a TOML file")->required()->type_name("CONFIG.toml");
  command.add_option("--set", sets, "change one key, for example --set outer.steps=20; may be given again")
      ->type_name("KEY=VALUE")
      ->take_all()
      ->expected(1);
  command.add_option("--seed", seed, "seed of all random numbers (run.seed)")->type_name("N");
  command.add_option("--device", device, "cpu or cuda (run.device)")->type_name("DEVICE");
  command.add_option("--threads", threads, "threads of LibTorch (run.threads)")->type_name("N");
}

Config ConfigArguments::load() const {
  Config config = Config::load(path);
  for (const std::string& assignment : sets) config.set(assignment);
  if (!seed.empty()) config.set("run.seed=" + seed);
  if (!device.empty()) config.set("run.device=" + device);
  if (!threads.empty()) config.set("run.threads=" + threads);
  return config;
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"";
}

std::string beside(const std::string& directory, const std::string& suffix) {
  std::filesystem::path path = std::filesystem::path(directory).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return path.string() + suffix;
}

RunFront terminal_front() {
  watch_for_interruption();
  RunFront front;
  front.progress = progress_on(stderr);
  front.interrupt = &interrupted;
  front.notice = [](const std::string& sentence) { fmt::print(stderr, "{}\n", sentence); };
  return front;
}

int exit_status(const RunResult& result) {
  if (result.outcome == Outcome::kInterrupted) return 130;
  return result.outcome == Outcome::kDiverged || result.outcome == Outcome::kAborted || result.worst == Grade::kBad ? 1 : 0;
}

int conclude(const RunResult& result, const std::string& directory) {
  if (result.outcome == Outcome::kInterrupted) {
    fmt::print(stderr, "{} Go on with: bilevel resume {}\n", result.message, directory);
    return exit_status(result);
  }
  try {
    write_file(directory + "/report.html", render_html(run_report(directory)));
  } catch (const Error& error) {
    fmt::print(stderr, "The run is complete, but its report could not be written: {}\n", error.what());
  }
  fmt::print("{}", terminal_summary(directory, terminal_width(), color_on_stdout()));
  return exit_status(result);
}

int terminal_width() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

bool color_on_stdout() {
  const char* no_color = std::getenv("NO_COLOR");
  return isatty(STDOUT_FILENO) != 0 && (no_color == nullptr || *no_color == '\0');
}

std::string version() {
  return fmt::format("bilevel {}\ntorch {}\ndevices {}\nthreads {}\nSIMD {}", BILEVEL_VERSION, TORCH_VERSION,
                     at::hasCUDA() ? "cpu, cuda" : "cpu", at::get_num_threads(), at::get_cpu_capability());
}

}  // namespace bilevel::cli
