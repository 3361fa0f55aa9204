#pragma once
#include <exception>
#include <filesystem>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "bilevel/algorithm/algorithm.h"
#include "bilevel/core/config.h"
#include "bilevel/problem/dataset.h"
#include "bilevel/report/report.h"

/// What the jobs (reweight, tune) have in common: several stages around bilevel problems, whose results appear at once.
namespace bilevel {

/// The job that a configuration describes: "reweight", "tune", or "" for a run of one bilevel problem.
std::string job_of(const Config& config);

/// Thrown by a job when its watch's `interrupt` is set.
class Interrupted : public std::exception {
 public:
  const char* what() const noexcept override { return "interrupted"; }
};

/// Reads the table `key` of [data].
DataSpec read_spec(Section& data, const std::string& key);

/// Numbers of a job's records over its outer steps, a line for each.
LineChart curve(const std::vector<Record>& records, const std::string& title, const std::string& axis, bool log,
                const std::vector<std::pair<std::string, std::function<double(const Record&)>>>& series);

/// Where the results are put together before they appear: a name of this process, so that nobody else's files are touched.
class Staging {
 public:
  /// Throws Error where the directory `out` cannot be made.
  explicit Staging(const std::string& out);
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  std::string path() const { return path_.string(); }
  void publish();

 private:
  std::string name() const;
  void probe() const;

  std::filesystem::path final_, path_;
  bool into_ = false;
};

}  // namespace bilevel
