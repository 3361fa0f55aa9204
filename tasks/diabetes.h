#pragma once
#include <ATen/core/Tensor.h>

namespace bilevel {

/// The diabetes data of scikit-learn (load_diabetes), whose files every build carries: 442 patients, ten measurements each, and
/// the progression of the disease after a year (Efron, Hastie, Johnstone & Tibshirani, Least angle regression, Annals of
/// Statistics 32, 2004).
struct Diabetes {
  Diabetes();
  at::Tensor X;  // [442, 10], double: columns of mean zero and unit length, as scikit-learn has them
  at::Tensor t;  // [442]
};

}  // namespace bilevel
