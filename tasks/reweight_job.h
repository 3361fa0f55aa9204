#pragma once
#include <memory>
#include <string>
#include <vector>

#include "bilevel/core/config.h"
#include "bilevel/core/guards.h"
#include "bilevel/report/report.h"
#include "tasks/experiment.h"
#include "tasks/reweight.h"

namespace bilevel {

/// What a configuration with task = "reweight" describes: data, model, and how trust is learned.
///
///     [data]   noisy = {…}, trusted = {…} or trusted_fraction = P, test = {…}; or simulate = "mixed" | "swapping" on a builtin
///     [reweight], [problem] model …, [run] seed, seeds, threads
class ReweightJob {
 public:
  /// Reads and finishes every section; loads and checks the user's data. Throws Error.
  explicit ReweightJob(Config config);
  ~ReweightJob();

  std::string text() const { return config_.text(); }
  int64_t seeds() const { return seeds_; }
  uint64_t seed() const { return options_.seed; }
  bool has_trusted() const;
  bool simulated() const { return !simulate_.empty(); }
  const ReweightOptions& options() const { return options_; }
  const Encoding& encoding() const { return encoding_; }
  const std::vector<std::string>& notes() const { return notes_; }

  /// The data as this seed draws them: simulated labels, a random trusted part.
  ReweightData data(uint64_t seed) const;
  bool is_table() const;
  const CsvTable& table() const { return table_; }  // the user's, where the data are a table
  const Dataset& given() const { return noisy_; }   // all that the user gave

 private:
  at::Tensor noisy_rows(uint64_t seed) const;
  int64_t trusted_count() const;  // of the rows of one file that are drawn as trusted
  void read_simulation(Section& data);
  void read_files(Section& data);

  Config config_;
  ReweightOptions options_;
  int64_t seeds_ = 1;
  std::string simulate_, builtin_;
  int64_t samples_ = 0, trusted_samples_ = 0;
  double trusted_fraction_ = 0;
  DataSpec noisy_spec_;
  Dataset noisy_, trusted_, test_;
  Encoding encoding_;
  CsvTable table_;
  std::vector<std::string> notes_;
  std::unique_ptr<ThreadsGuard> threads_;
};

/// Does the job for each seed and writes into the directory `out`, which must be free: config.toml, log.jsonl, x.npy, y.npy,
/// layout.json, summary.json, sources.csv, cleaned.csv, model.safetensors, report.html. The files hold the first seed's results;
/// the table in summary.json is over all seeds. The directory appears at once and complete, or not at all: an interruption, an
/// error or the end of the process leave nothing in its place. Returns the report. Throws Interrupted, Error for data that cannot
/// serve and a directory that cannot be made (before any work), and std::runtime_error where the job itself or the disk fails, or
/// where `front.strict` ends it.
Report run_reweight(const ReweightJob& job, const std::string& out, const RunFront& front);

struct LabelFile {
  int64_t rows = 0;
  std::string message;
};
/// Without trusted samples: writes which rows to label first to `path`, and says what to do with them.
LabelFile request_labels(const ReweightJob& job, const std::string& path);

}  // namespace bilevel
