#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>

namespace bilevel {

/// The bytes of a PNG file of `image`: [H, W] or [1, H, W] in grey, [3, H, W] in colour. uint8 is taken as it is; floats are
/// clamped to 0…1. Throws Error for any other shape or type.
std::string encode_png(const at::Tensor& image);

std::string base64(std::string_view bytes);

}  // namespace bilevel
