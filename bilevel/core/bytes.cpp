#include "bilevel/core/bytes.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <utility>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

constexpr std::array<std::pair<const char*, double>, 10> kUnits = {{{"", 1.0},
                                                                    {"b", 1.0},
                                                                    {"kb", 1e3},
                                                                    {"mb", 1e6},
                                                                    {"gb", 1e9},
                                                                    {"tb", 1e12},
                                                                    {"kib", 1024.0},
                                                                    {"mib", 1048576.0},
                                                                    {"gib", 1073741824.0},
                                                                    {"tib", 1099511627776.0}}};

}  // namespace

int64_t parse_bytes(const std::string& text) {
  double number = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string unit(end, text.data() + text.size());
  unit.erase(0, std::min(unit.find_first_not_of(' '), unit.size()));
  std::transform(unit.begin(), unit.end(), unit.begin(), [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  if (error == std::errc() && number >= 0 && std::isfinite(number)) {
    for (const auto& [name, factor] : kUnits) {
      if (unit == name && number * factor < 9e18) return static_cast<int64_t>(std::llround(number * factor));
    }
  }
  throw Error(fmt::format("\"{}\" is no number of bytes; something like 200MB, 1.5 GiB or 4096 would be right.", text));
}

std::string bytes_text(double bytes) {
  const std::array<const char*, 5> units = {"B", "kB", "MB", "GB", "TB"};
  size_t unit = 0;
  while (bytes >= 1000 && unit + 1 < units.size()) bytes /= 1000, ++unit;
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.3g} {}", bytes, units[unit]);
}

void read_bytes(Section& section, const std::string& key, int64_t& value) {
  if (!section.is_text(key)) {
    section.read(key, value);
    if (value < 0) section.fail(key, fmt::format("{} bytes cannot be; 0 or more would be right.", value));
    return;
  }
  std::string text;
  section.read(key, text);
  try {
    value = parse_bytes(text);
  } catch (const Error& error) {
    section.fail(key, error.what());
  }
}

}  // namespace bilevel
