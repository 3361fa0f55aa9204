#pragma once
#include <string>
#include <string_view>

namespace bilevel {

/// The bytes of a file. Throws Error with the system's reason.
std::string read_file(const std::string& path);

/// Writes beside `path`, flushes to the disk and renames: after a crash at any moment `path` holds the old bytes or the new ones.
/// Throws Error with the system's reason (a full disk, no permission) and leaves the old file as it was.
void write_file(const std::string& path, std::string_view bytes);

}  // namespace bilevel
