#pragma once
#include <string>
#include <vector>

#include "bilevel/report/report.h"
#include "bilevel/run/explain.h"

namespace bilevel {

/// One component of the hypergradient taken apart: a section of the run's report, and what `bilevel explain` shows.
Report::Section explanation_section(const Explanation& explanation);

/// Without `shares`, which are as many as there are samples.
std::string to_json(const Explanation& explanation);

/// The explanations that a run directory keeps in explanations.json, oldest first; none where there is no such file. What cannot
/// be read is left out.
std::vector<Explanation> kept_explanations(const std::string& directory);
/// Puts one more there, in place of the one of the same element and step.
void keep_explanation(const std::string& directory, const Explanation& explanation);

}  // namespace bilevel
