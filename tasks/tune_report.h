#pragma once
#include <string>

#include "bilevel/report/report.h"
#include "tasks/tune.h"

namespace bilevel {

/// What people look at after `bilevel tune`.
Report tune_report(const TuneOptions& options, const TuneData& data, const TuneResult& result, const std::string& config);

}  // namespace bilevel
