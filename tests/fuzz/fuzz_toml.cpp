#include "bilevel/core/config.h"
#include "tests/fuzz/fuzz.h"

using namespace bilevel;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return reads_or_refuses(data, size, [](std::string_view bytes) {
    const std::string text = Config::parse(bytes, "fuzz.toml").text();
    std::string again;
    try {
      again = Config::parse(text, "again.toml").text();
    } catch (const Error&) {
      __builtin_trap();  // it does not read what it writes
    }
    if (again != text) __builtin_trap();
  });
}
