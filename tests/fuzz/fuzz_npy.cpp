#include <ATen/ATen.h>

#include "bilevel/problem/npy.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return reads_or_refuses(data, size,
                          [](std::string_view bytes) { bilevel::parse_npy(bytes, "fuzz.npy").to(at::kDouble).sum(); });
}
