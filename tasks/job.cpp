#include "tasks/job.h"

#include <unistd.h>

#include <fmt/format.h>

#include "bilevel/core/error.h"

namespace bilevel {

namespace fs = std::filesystem;

std::string job_of(const Config& config) {
  Section root = config.root();
  if (!root.is_table("problem") || !root.section("problem").is_text("task")) return "";
  std::string task;
  root.section("problem").read("task", task);
  return task == "reweight" || task == "tune" ? task : "";
}

DataSpec read_spec(Section& data, const std::string& key) {
  DataSpec spec;
  Section section = data.section(key);
  read(section, spec);
  return spec;
}

LineChart curve(const std::vector<Record>& records, const std::string& title, const std::string& axis, bool log,
                const std::vector<std::pair<std::string, std::function<double(const Record&)>>>& series) {
  LineChart chart;
  chart.title = title;
  chart.x_label = "outer step";
  chart.y_label = axis;
  chart.log_y = log;
  for (const auto& [name, value] : series) {
    LineChart::Series one{name, {}, {}};
    for (const Record& record : records) {
      one.x.push_back(static_cast<double>(record.step));
      one.y.push_back(value(record));
    }
    chart.series.push_back(std::move(one));
  }
  return chart;
}

Staging::Staging(const std::string& out) : final_(fs::absolute(out).lexically_normal()) {
  if (!final_.has_filename()) final_ = final_.parent_path();
  // A directory that is there already may be a mount point, which cannot be replaced: then its files are moved into it.
  into_ = fs::exists(final_);
  path_ = into_ ? final_ / name() : final_.parent_path() / name();
  probe();
}

Staging::~Staging() {
  std::error_code none;
  fs::remove_all(path_, none);
}

void Staging::publish() {
  if (!into_) return fs::rename(path_, final_);
  for (const auto& entry : fs::directory_iterator(path_)) fs::rename(entry.path(), final_ / entry.path().filename());
}

std::string Staging::name() const { return fmt::format(".{}.{}.partial", final_.filename().string(), getpid()); }

// Before the work and not after it.
void Staging::probe() const {
  fs::path there = path_.parent_path();
  while (!fs::exists(there) && there.has_relative_path()) there = there.parent_path();
  std::error_code error;
  const fs::path probe = there / name();
  fs::create_directory(probe, error);
  if (error) throw Error(fmt::format("Cannot make the directory {}: {}.", final_.string(), error.message()));
  fs::remove(probe, error);
}

}  // namespace bilevel
