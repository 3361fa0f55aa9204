#pragma once
#include <string>
#include <string_view>

#include "bilevel/report/report.h"

namespace bilevel {

/// `report` as one HTML file that needs nothing else: styles, pictures and the chart library are inside it, and its content
/// security policy forbids every request. Every text is escaped. Charts are drawn by Chart.js; their numbers stand in tables
/// below them.
std::string render_html(const Report& report);

/// `text` for use between tags and inside quoted attributes.
std::string escape_html(std::string_view text);

}  // namespace bilevel
