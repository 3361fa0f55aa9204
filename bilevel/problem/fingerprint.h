#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace bilevel {

/// A checksum (CRC-32, eight hexadecimal digits) of dtypes, shapes and elements, in this order; undefined tensors count too. It
/// tells data that have changed, and is no safeguard against data that were made to agree.
std::string fingerprint(const std::vector<at::Tensor>& tensors);

}  // namespace bilevel
