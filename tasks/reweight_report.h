#pragma once
#include <optional>
#include <string>
#include <vector>

#include "bilevel/report/report.h"
#include "tasks/reweight.h"

namespace bilevel {

/// A row of the table over all seeds.
struct TableRow {
  std::string slug, title;
  double accuracy = 0;                   // on the test set, or on held-back trusted samples where there is none
  std::optional<double> standard_error;  // over the seeds
  double held_back_accuracy = 0;
  double ridge = 0;  // of the first seed, like what follows
  std::optional<double> threshold;
  double stationarity = 0;
};
std::vector<TableRow> mean_rows(const std::vector<ReweightResult>& results);

/// What people look at after `bilevel reweight`; pictures and sources are those of the first seed.
Report reweight_report(const ReweightOptions& options, const ReweightData& data, const std::vector<ReweightResult>& results,
                       const std::vector<TableRow>& rows, const std::string& config);

}  // namespace bilevel
