#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string_view>

#include "bilevel/core/error.h"

/// What a reader may do with any bytes at all: read them, or throw bilevel::Error.
inline int reads_or_refuses(const uint8_t* data, size_t size, const std::function<void(std::string_view)>& reader) {
  try {
    reader({reinterpret_cast<const char*>(data), size});
  } catch (const bilevel::Error&) {
  }
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
