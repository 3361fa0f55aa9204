#pragma once
#include <string>
#include <vector>

#include "bilevel/report/report.h"
#include "studies/study.h"

namespace bilevel {

/// The README.md of a study: method, formula, claim | paper | ours | verdict, cost, and the numbers of its picture.
std::string study_readme(const StudyResult& result);

/// One page of all the results: a section each, with its claims and its picture.
Report study_index(const std::vector<StudyResult>& results);

/// What `bilevel reproduce --json` prints: {"studies": [{"slug", "claims": [{"claim", "verdict", …}], …}]}.
std::string study_json(const std::vector<StudyResult>& results);

/// One line: study, claim, verdict, measured, bar.
std::string claim_line(const StudyResult& result, const Judgement& judgement);

/// DIR/index.html, DIR/verdicts.json and DIR/<slug>/README.md. Throws Error where the directory cannot be written.
void write_study_pages(const std::string& directory, const std::vector<StudyResult>& results);

}  // namespace bilevel
