#pragma once
#include <string>
#include <string_view>

#include <ATen/core/Tensor.h>

namespace bilevel {

/// An IDX file (the format of MNIST and its successors), plain or gzip: a tensor of the file's shape and dtype (uint8, int8,
/// int16, int32, float32 or float64). Throws Error, naming the file and what is wrong with it.
at::Tensor read_idx(const std::string& path);
at::Tensor parse_idx(std::string_view bytes, const std::string& name);

}  // namespace bilevel
