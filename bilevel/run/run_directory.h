#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/core/layout.h"
#include "bilevel/core/state.h"
#include "bilevel/run/driver.h"

namespace bilevel {

/// What a run leaves behind, readable at every moment:
///
///     config.toml    complete, repeats the run        layout.json   names, shapes, offsets of x and y; a hash of the data
///     log.jsonl      one object per record            checkpoint    a State (safetensors)
///     summary.json   how it ended                     x.npy, y.npy  at the end
///
/// In `log.jsonl` and `summary.json`, seconds and bytes stand in a `machine` object; all else is the same for every run of the
/// same configuration on the same machine and thread count. Numbers that are not finite are null. One process at a time: a lock
/// is held on the directory. All members throw Error with the system's reason where the disk refuses.
class RunDirectory {
 public:
  /// Makes `path`, or takes it where it is empty. Throws Error for a directory that holds anything.
  static RunDirectory create(const std::string& path, std::string_view config_text);
  /// Takes a directory that holds a run. Throws Error where there is none, or another process works on it.
  static RunDirectory open(const std::string& path);
  /// Throws the Error that `create` would, and makes nothing: asked before work is spent.
  static void check_free(const std::string& path);

  ~RunDirectory();
  RunDirectory(RunDirectory&& other) noexcept;
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string file(std::string_view name) const;
  bool has_checkpoint() const;
  bool finished() const;  // a summary of a run that came to its end is there

  /// `identity` says in one line what a resumed run must find again: a hash of the data, for example.
  void write_layout(const Layout& x, const Layout& y, const std::string& identity = "");
  std::string identity() const;  // "" where none was written
  void append(const Record& record, const std::vector<RollBack>& since_last);
  void checkpoint(const State& state);
  State load_checkpoint() const;
  /// Keeps the first `records` of the log, one for every so many steps, and drops the rest, a torn last line too.
  void cut_log(int64_t records, int64_t every = 1);
  /// Writes x.npy, y.npy and summary.json.
  void finish(const RunResult& result, std::string_view algorithm);

 private:
  RunDirectory(std::string path, int lock);
  void open_log();
  std::string path_;
  int lock_ = -1, log_ = -1;
};

}  // namespace bilevel
