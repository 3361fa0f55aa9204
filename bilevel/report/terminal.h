#pragma once
#include <string>

#include "bilevel/report/report.h"

namespace bilevel {

/// `report` for a terminal of `width` columns: tables as columns, curves as one line of blocks, bars as bars. Pictures and
/// preformatted texts are left to the HTML page. `color` uses ANSI colours; whoever prints decides (NO_COLOR, a pipe).
std::string render_terminal(const Report& report, int width = 80, bool color = false);

}  // namespace bilevel
