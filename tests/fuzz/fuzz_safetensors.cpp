#include <ATen/ATen.h>

#include "bilevel/core/safetensors.h"
#include "tests/fuzz/fuzz.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return reads_or_refuses(data, size, [](std::string_view bytes) {
    for (const auto& [name, tensor] : bilevel::parse_safetensors(bytes, "fuzz").tensors) tensor.to(at::kDouble).sum();
  });
}
