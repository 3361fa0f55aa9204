#pragma once
#include <memory>
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/core/guards.h"
#include "bilevel/report/report.h"
#include "tasks/experiment.h"
#include "tasks/tune.h"

namespace bilevel {

/// What a configuration with task = "tune" describes: data, model, and what has a strength of its own.
///
///     [data]   train = {…}, test = {…}, folds = "folds.npy", groups; or builtin = "fashion-mnist" | "digits", with samples of it
///     [tune], [problem] model, loss …, [run] seed, threads
class TuneJob {
 public:
  /// Reads and finishes every section; loads and checks the data. Throws Error.
  explicit TuneJob(Config config);
  ~TuneJob();

  std::string text() const { return config_.text(); }
  const TuneOptions& options() const { return options_; }
  const Encoding& encoding() const { return encoding_; }
  const TuneData& data() const { return data_; }
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  void read_builtin(Section& data);
  void read_files(Section& data);
  void read_groups(const std::string& groups);

  Config config_;
  TuneOptions options_;
  TuneData data_;
  Encoding encoding_;
  std::vector<std::string> notes_;
  std::unique_ptr<ThreadsGuard> threads_;
};

/// Does the job and writes into the directory `out`, which must be free: config.toml, log.jsonl, x.npy, y.npy, layout.json,
/// summary.json, strengths.csv, model.safetensors, report.html. The directory appears at once and complete, or not at all.
/// Returns the report. Throws Interrupted, Error for data that cannot serve and a directory that cannot be made (before any
/// work), and std::runtime_error where the job itself or the disk fails.
Report run_tune(const TuneJob& job, const std::string& out, const RunFront& front);

}  // namespace bilevel
