#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <utility>

namespace bilevel {

/// `count` images of Fashion-MNIST, float32 [count, 28, 28], and their labels, int64 [count], drawn for a study and a seed.
std::pair<at::Tensor, at::Tensor> draw_fashion(const std::string& study, const std::string& split, int64_t count, int64_t seed);

}  // namespace bilevel
