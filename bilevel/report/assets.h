#pragma once
#include <string_view>

namespace bilevel {

// Files that the library carries inside itself, so that an installed library finds them wherever it is.
std::string_view chart_js();  // Chart.js 3.9.1, MIT license
std::string_view page_css();
std::string_view page_js();

}  // namespace bilevel
