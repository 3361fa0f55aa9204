#pragma once
#include <cstdint>
#include <string>

#include "bilevel/core/config.h"

namespace bilevel {

/// The bytes that "200MB", "1.5 GiB" or "4096" name: B, KB, MB, GB, TB are powers of 1000 and KiB, MiB, GiB, TiB of 1024, in any
/// case. Throws Error for anything else.
int64_t parse_bytes(const std::string& text);

/// "1.5 GB", to be read by people.
std::string bytes_text(double bytes);

/// Reads a number of bytes, given as a whole number or as text with a unit.
void read_bytes(Section& section, const std::string& key, int64_t& value);

}  // namespace bilevel
