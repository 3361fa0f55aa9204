#pragma once
#include "bilevel/report/report.h"
#include "bilevel/run/plan.h"

namespace bilevel {

/// What a run would cost, and the other ways to do it.
Report plan_report(const Plan& plan, const std::string& configuration);

/// The lines of the choice, by table; empty where the configuration may stay as it is.
std::string planned_toml(const Plan& plan);

/// As `bilevel plan --json` prints it. `load_seconds`: reading configuration and data.
std::string plan_json(const Plan& plan, double load_seconds);

}  // namespace bilevel
