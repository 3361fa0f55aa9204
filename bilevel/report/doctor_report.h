#pragma once
#include "bilevel/report/report.h"
#include "bilevel/run/doctor.h"

namespace bilevel {

/// What was found out about a problem's hypergradients: advice, traps, the trials as a table and as error against cost.
Report doctor_report(const Diagnosis& diagnosis, const std::string& configuration);

/// The lines that the advice comes to, for [hypergradient]; empty where there is none, and where there is no such table.
std::string recommended_toml(const Diagnosis& diagnosis);

/// The diagnosis as `bilevel doctor --json` prints it.
std::string doctor_json(const Diagnosis& diagnosis);

}  // namespace bilevel
