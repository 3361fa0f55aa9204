#pragma once
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace bilevel {

/// Misuse: a wrong shape, an unknown option, bad data, a missing capability. The message names the place, the value, and what
/// would be right. Numerical failure is never an Error but a Status.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// Throws Error with `message` unless `condition` holds.
void require(bool condition, std::string_view message);

/// "a, b or c", for messages.
std::string one_of(const std::vector<std::string>& names);

/// The known name nearest to `name` (edit distance at most two, or a third of its length), or "" where none is near.
std::string nearest(std::string_view name, const std::vector<std::string>& known);

/// ` Did you mean "x"?` where a known name is near, else the list of known names.
std::string suggestion(std::string_view name, const std::vector<std::string>& known);

}  // namespace bilevel
