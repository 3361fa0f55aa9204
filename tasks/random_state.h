#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <random>

namespace bilevel {

/// numpy.random.RandomState, number for number, so that data sets which others describe by a seed can be made again. For our own
/// random numbers see core/stream.h.
class RandomState {
 public:
  explicit RandomState(uint32_t seed) : engine_(seed) {}

  double uniform();                           // on [0, 1)
  double normal();                            // polar method (Marsaglia & Bray 1964)
  at::Tensor normals(at::IntArrayRef sizes);  // float64, filled row by row
  at::Tensor permutation(int64_t n);          // int64 [n]

 private:
  uint32_t at_most(uint32_t bound);
  std::mt19937 engine_;
  bool has_spare_ = false;
  double spare_ = 0;
};

struct RegressionData {
  at::Tensor X, t;  // [n, p], [n]
};
/// sklearn.datasets.make_regression(n, p, noise=noise, random_state=seed), whose ten first features at most are informative.
RegressionData make_regression(int64_t n, int64_t p, double noise, uint32_t seed);

}  // namespace bilevel
