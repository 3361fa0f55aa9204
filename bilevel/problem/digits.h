#pragma once
#include <ATen/core/Tensor.h>

namespace bilevel {

/// The 1,797 handwritten digits of 8 × 8 pixels that every build carries.
///
/// The test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin & C. Kaynak 1998, UCI Machine Learning Repository,
/// doi:10.24432/C50P49, licence CC BY 4.0), in the order and form of scikit-learn's load_digits.
struct Digits {
  at::Tensor pixels;  // uint8 [1797, 8, 8], 0…16
  at::Tensor labels;  // int64 [1797], 0…9
};
const Digits& digits();

}  // namespace bilevel
