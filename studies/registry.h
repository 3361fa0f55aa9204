#pragma once
#include <string>
#include <vector>

#include "studies/study.h"

namespace bilevel {

const std::vector<Study>& studies();

/// Throws Error for an unknown slug, with the nearest one.
const Study& study_of(const std::string& slug);

}  // namespace bilevel
