#pragma once
#include <string>
#include <string_view>

#include <ATen/core/Tensor.h>

namespace bilevel {

/// A NumPy array file, format 1 to 3, little-endian, C or Fortran order: bool, int8 … int64, uint8 … uint64, float16 … float64.
/// What LibTorch calculates badly with becomes int64: uint16, uint32, uint64 (whose values must fit). Throws Error, naming the
/// file and what is wrong with it; arrays of Python objects are refused, because reading them would run code.
at::Tensor read_npy(const std::string& path);
at::Tensor parse_npy(std::string_view bytes, const std::string& name);

/// Writes format 1.0 in C order, beside `path` and renamed.
void write_npy(const at::Tensor& tensor, const std::string& path);

}  // namespace bilevel
