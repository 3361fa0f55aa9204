#pragma once
#include <string>
#include <string_view>

namespace bilevel {

bool is_gzip(std::string_view bytes);

/// The content of a gzip file, of one member or several. Throws Error, naming `name`, where it is cut off, damaged or followed by
/// something else.
std::string gunzip(std::string_view bytes, const std::string& name);

}  // namespace bilevel
