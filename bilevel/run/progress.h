#pragma once
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

#include "bilevel/algorithm/algorithm.h"

namespace bilevel {

struct ProgressOptions {
  std::FILE* file = nullptr;  // nothing is drawn without one; the front gives stderr
  bool terminal = false;      // a bar that is redrawn; otherwise a line for each 10 %
  bool color = false;
  double patience = 2.0;  // seconds: what is over sooner needs no bar
};
/// For `file`: whether it is a terminal, and colours unless NO_COLOR is set.
ProgressOptions progress_on(std::FILE* file);

/// A bar with the time left, the outer loss, the hypergradient norm and the stationarity.
class Progress {
 public:
  /// `first_step` is where a resumed run goes on.
  Progress(ProgressOptions options, int64_t steps, int64_t first_step = 0);
  ~Progress();  // clears the bar
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void update(const Record& record);
  void clear();
  /// What `update` would draw, without colours, `elapsed` seconds after the first step.
  std::string text(const Record& record, double elapsed, int width) const;

 private:
  ProgressOptions options_;
  int64_t steps_, first_step_;
  int64_t tenths_shown_ = 0;
  bool drawn_ = false;
  std::chrono::steady_clock::time_point began_, last_drawn_;
};

/// A bar for work whose share that is done is only guessed at: what is being done, and about how long it still takes.
class StageProgress {
 public:
  explicit StageProgress(ProgressOptions options);
  ~StageProgress();  // clears the bar
  StageProgress(const StageProgress&) = delete;
  StageProgress& operator=(const StageProgress&) = delete;

  void update(const std::string& doing, double fraction);
  /// What `update` would draw, without colours.
  static std::string text(const std::string& doing, double fraction, double elapsed, int width);

 private:
  ProgressOptions options_;
  bool drawn_ = false;
  int64_t tenths_shown_ = 0;
  std::chrono::steady_clock::time_point began_;
};

}  // namespace bilevel
