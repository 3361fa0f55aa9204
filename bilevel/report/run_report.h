#pragma once
#include <string>

#include "bilevel/report/report.h"

namespace bilevel {

/// What happened in the run whose directory this is: how it ended, curves, the hyperparameters, cost, configuration. A run that
/// has not come to its end is shown as far as it went. Throws Error where the directory holds no run.
Report run_report(const std::string& directory);

/// The same for a terminal of `width` columns, ending with the place of the whole report.
std::string terminal_summary(const std::string& directory, int width = 80, bool color = false);

}  // namespace bilevel
