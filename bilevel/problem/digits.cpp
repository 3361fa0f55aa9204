#include "bilevel/problem/digits.h"

#include <charconv>
#include <string>
#include <string_view>

#include <ATen/ATen.h>

#include "bilevel/core/error.h"
#include "bilevel/problem/gzip.h"

// The file goes into the object as it is, so that the digits are there wherever the library is.
asm(".pushsection .rodata\n"
    ".globl bilevel_digits_begin\n.hidden bilevel_digits_begin\n"
    ".globl bilevel_digits_end\n.hidden bilevel_digits_end\n"
    "bilevel_digits_begin:\n.incbin \"" BILEVEL_DIGITS
    "\"\n"
    "bilevel_digits_end:\n"
    ".popsection\n");
extern "C" {
__attribute__((visibility("hidden"))) extern const char bilevel_digits_begin[];
__attribute__((visibility("hidden"))) extern const char bilevel_digits_end[];
}

namespace bilevel {
namespace {

constexpr int64_t kSamples = 1797, kPixels = 64;

Digits parse(std::string_view text) {
  Digits digits{at::empty({kSamples, 8, 8}, at::kByte), at::empty({kSamples}, at::kLong)};
  auto* pixel = digits.pixels.mutable_data_ptr<uint8_t>();
  auto* label = digits.labels.mutable_data_ptr<int64_t>();
  const char* at = text.data();
  const char* const end = text.data() + text.size();
  for (int64_t i = 0; i < kSamples * (kPixels + 1); ++i) {
    int value = -1;
    const auto [next, error] = std::from_chars(at, end, value);
    require(error == std::errc() && next < end, "digits: the embedded file is damaged.");
    at = next + 1;  // past the comma or the end of the line
    if (i % (kPixels + 1) < kPixels) {
      *pixel++ = static_cast<uint8_t>(value);
    } else {
      *label++ = value;
    }
  }
  require(at == end, "digits: the embedded file is damaged.");
  return digits;
}

}  // namespace

const Digits& digits() {
  static const Digits kDigits = parse(
      gunzip({bilevel_digits_begin, static_cast<size_t>(bilevel_digits_end - bilevel_digits_begin)}, "the embedded digits"));
  return kDigits;
}

}  // namespace bilevel
