#include "bilevel/run/run_directory.h"

#include <ATen/ATen.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <utility>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/problem/npy.h"
#include "bilevel/run/json.h"

namespace bilevel {
namespace {

namespace fs = std::filesystem;

/// Nothing but what a killed `write_file` of ours may have left.
bool holds_nothing(const std::string& path) {
  for (const auto& entry : fs::directory_iterator(path)) {
    if (entry.path().filename() != "config.toml.partial") return false;
  }
  return true;
}

int lock_directory(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) throw Error(fmt::format("Cannot open the run directory {}: {}.", path, std::strerror(errno)));
  // A file system without locks is no reason to refuse.
  if (flock(fd, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    close(fd);
    throw Error(fmt::format("Another process is working on the run directory {}; wait for its end.", path));
  }
  return fd;
}

void write_all(int fd, std::string_view bytes, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(fd, bytes.data(), bytes.size());
    if (written >= 0) {
      bytes.remove_prefix(static_cast<size_t>(written));
    } else if (errno != EINTR) {
      throw Error(fmt::format("Cannot write {}: {}.", path, std::strerror(errno)));
    }
  }
}

}  // namespace

RunDirectory::RunDirectory(std::string path, int lock) : path_(std::move(path)), lock_(lock) {}

RunDirectory::RunDirectory(RunDirectory&& other) noexcept
    : path_(std::move(other.path_)), lock_(std::exchange(other.lock_, -1)), log_(std::exchange(other.log_, -1)) {}

RunDirectory::~RunDirectory() {
  if (log_ >= 0) close(log_);
  if (lock_ >= 0) close(lock_);
}

std::string RunDirectory::file(std::string_view name) const { return (fs::path(path_) / name).string(); }

void RunDirectory::check_free(const std::string& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (!fs::exists(status)) return;
  require(fs::is_directory(status), fmt::format("{} exists and is not a directory; name another one for the run.", path));
  bool free = false;
  try {
    free = holds_nothing(path);
  } catch (const fs::filesystem_error& failure) {
    throw Error(fmt::format("Cannot read the directory {}: {}.", path, failure.code().message()));
  }
  if (free) return;
  if (fs::exists(fs::path(path) / "config.toml")) {
    throw Error(
        fmt::format("{} holds another run; name another directory, or continue that run with `bilevel resume {}`.", path, path));
  }
  throw Error(fmt::format("The directory {} is not empty; name a new one for the run.", path));
}

RunDirectory RunDirectory::create(const std::string& path, std::string_view config_text) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error && !fs::is_directory(path)) throw Error(fmt::format("Cannot make the directory {}: {}.", path, error.message()));
  RunDirectory directory(path, lock_directory(path));
  check_free(path);  // under the lock, so that of two processes one gets it
  // The configuration comes first: with it alone `resume` can start the run again.
  write_file(directory.file("config.toml"), config_text);
  directory.open_log();
  return directory;
}

void RunDirectory::write_layout(const Layout& x, const Layout& y, const std::string& identity) {
  write_file(file("layout.json"), to_json(x, y, identity) + "\n");
}

std::string RunDirectory::identity() const {
  if (!fs::exists(file("layout.json"))) return "";
  const auto layout = nlohmann::json::parse(read_file(file("layout.json")), nullptr, false);
  require(layout.is_object(), fmt::format("{} is damaged.", file("layout.json")));
  return layout.value("identity", "");
}

RunDirectory RunDirectory::open(const std::string& path) {
  require(fs::is_directory(path), fmt::format("{} is not a directory; `bilevel resume` takes the directory of a run.", path));
  require(fs::exists(fs::path(path) / "config.toml"), fmt::format("{} holds no run: there is no config.toml in it.", path));
  return {path, lock_directory(path)};
}

bool RunDirectory::has_checkpoint() const { return fs::exists(file("checkpoint")); }
bool RunDirectory::finished() const { return fs::exists(file("summary.json")); }

void RunDirectory::open_log() {
  if (log_ >= 0) return;
  log_ = ::open(file("log.jsonl").c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (log_ < 0) throw Error(fmt::format("Cannot write {}: {}.", file("log.jsonl"), std::strerror(errno)));
}

void RunDirectory::append(const Record& record, const std::vector<RollBack>& since_last) {
  open_log();
  write_all(log_, to_json(record, since_last) + "\n", file("log.jsonl"));
}

void RunDirectory::checkpoint(const State& state) {
  // The log must reach the disk before a checkpoint that counts on it.
  if (log_ >= 0 && fsync(log_) != 0) throw Error(fmt::format("Cannot write {}: {}.", file("log.jsonl"), std::strerror(errno)));
  save_state(state, file("checkpoint"));
}

State RunDirectory::load_checkpoint() const { return load_state(file("checkpoint")); }

void RunDirectory::cut_log(int64_t records, int64_t every) {
  const std::string path = file("log.jsonl");
  if (log_ >= 0) close(std::exchange(log_, -1));
  const std::string text = fs::exists(path) ? read_file(path) : "";
  size_t kept = 0;
  for (int64_t expected = 0; expected < records * every; expected += every) {
    const size_t line_end = text.find('\n', kept);
    const auto line = line_end == std::string::npos ? nlohmann::json()
                                                    : nlohmann::json::parse(text.substr(kept, line_end - kept), nullptr, false);
    require(line.is_object() && line.value("step", int64_t{-1}) == expected,
            fmt::format("{} lacks the record of step {}, which is before the checkpoint; the run cannot be continued.", path,
                        expected));
    kept = line_end + 1;
  }
  if (kept < text.size() || !fs::exists(path)) write_file(path, text.substr(0, kept));
  open_log();
}

void RunDirectory::finish(const RunResult& result, std::string_view algorithm) {
  write_npy(result.state.tensor("x"), file("x.npy"));
  write_npy(result.state.tensor("y"), file("y.npy"));
  write_file(file("summary.json"), to_json(result, algorithm) + "\n");
}

}  // namespace bilevel
