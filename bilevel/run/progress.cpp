#include "bilevel/run/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace bilevel {
namespace {

std::string duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(std::max(0.0, seconds)));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{}:{:02}", whole / 60, whole % 60);
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

int width_of(std::FILE* file) {
  winsize size{};
  return ioctl(fileno(file), TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

}  // namespace

ProgressOptions progress_on(std::FILE* file) {
  ProgressOptions options;
  options.file = file;
  options.terminal = isatty(fileno(file)) != 0;
  const char* no_color = std::getenv("NO_COLOR");
  options.color = options.terminal && (no_color == nullptr || *no_color == '\0');
  return options;
}

Progress::Progress(ProgressOptions options, int64_t steps, int64_t first_step)
    : options_(options), steps_(steps), first_step_(first_step), began_(std::chrono::steady_clock::now()), last_drawn_(began_) {
  if (steps_ > 0) tenths_shown_ = 10 * first_step_ / steps_;
}

Progress::~Progress() { clear(); }

void Progress::clear() {
  if (drawn_) std::fputs("\r\033[K", options_.file), std::fflush(options_.file);
  drawn_ = false;
}

std::string Progress::text(const Record& record, double elapsed, int width) const {
  const int64_t done = std::min(record.step + 1, steps_);
  const double fraction = steps_ > 0 ? static_cast<double>(done) / static_cast<double>(steps_) : 1.0;
  const int64_t done_here = done - first_step_;
  const std::string left =
      done_here > 0 ? duration(elapsed / static_cast<double>(done_here) * static_cast<double>(steps_ - done)) + " left" : "";
  std::string line =
      fmt::format("{:3.0f} %  {}/{}  {}  outer loss {:.4g}  |hypergradient| {:.2e}  stationarity {:.1e}", 100 * fraction, done,
                  steps_, left, record.outer_loss, record.hypergradient_norm, record.stationarity);
  const int room = std::min(24, width - static_cast<int>(line.size()) - 4);
  if (room >= 6) {
    const int full = static_cast<int>(std::lround(fraction * room));
    line = fmt::format("[{}{}] {}", std::string(static_cast<size_t>(full), '#'),
                       std::string(static_cast<size_t>(room - full), '-'), line);
  }
  return line.substr(0, static_cast<size_t>(std::max(1, width - 1)));
}

void Progress::update(const Record& record) {
  if (!options_.file) return;
  const auto now = std::chrono::steady_clock::now();
  const double elapsed = std::chrono::duration<double>(now - began_).count();
  if (elapsed < options_.patience) return;
  if (!options_.terminal) {
    const int64_t tenths = steps_ > 0 ? 10 * std::min(record.step + 1, steps_) / steps_ : 10;
    if (tenths <= tenths_shown_) return;
    tenths_shown_ = tenths;
    fmt::print(options_.file, "{}\n", text(record, elapsed, 200));
    std::fflush(options_.file);
    return;
  }
  if (drawn_ && std::chrono::duration<double>(now - last_drawn_).count() < 0.1) return;
  const std::string line = text(record, elapsed, width_of(options_.file));
  const bool warn = options_.color && record.grade != Grade::kOk;
  fmt::print(options_.file, "\r\033[K{}{}{}", warn ? "\033[33m" : "", line, warn ? "\033[0m" : "");
  std::fflush(options_.file);
  drawn_ = true;
  last_drawn_ = now;
}

StageProgress::StageProgress(ProgressOptions options) : options_(options), began_(std::chrono::steady_clock::now()) {}

StageProgress::~StageProgress() {
  if (drawn_) std::fputs("\r\033[K", options_.file), std::fflush(options_.file);
}

std::string StageProgress::text(const std::string& doing, double fraction, double elapsed, int width) {
  const double part = std::clamp(fraction, 0.0, 1.0);
  constexpr int kBar = 20;
  const int full = static_cast<int>(std::lround(part * kBar));
  const std::string left = part > 0.02 ? duration(elapsed / part * (1 - part)) + " left" : "";
  const std::string head = fmt::format("[{}{}] {:3.0f} %  {:<10}  ", std::string(static_cast<size_t>(full), '#'),
                                       std::string(static_cast<size_t>(kBar - full), '-'), 100 * part, left);
  // Cut between characters: names have signs of several bytes.
  size_t end = std::min(doing.size(), static_cast<size_t>(std::max(0, width - 1 - static_cast<int>(head.size()))));
  while (end > 0 && end < doing.size() && (static_cast<unsigned char>(doing[end]) & 0xc0) == 0x80) --end;
  return head + doing.substr(0, end);
}

void StageProgress::update(const std::string& doing, double fraction) {
  if (!options_.file) return;
  const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count();
  if (elapsed < options_.patience) return;
  if (!options_.terminal) {
    const auto tenths = static_cast<int64_t>(10 * fraction);
    if (tenths <= tenths_shown_) return;
    tenths_shown_ = tenths;
    fmt::print(options_.file, "{}\n", text(doing, fraction, elapsed, 200));
  } else {
    fmt::print(options_.file, "\r\033[K{}", text(doing, fraction, elapsed, width_of(options_.file)));
    drawn_ = true;
  }
  std::fflush(options_.file);
}

}  // namespace bilevel
