#include "tasks/random_state.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace bilevel {

double RandomState::uniform() {
  const uint32_t high = static_cast<uint32_t>(engine_()) >> 5;
  const uint32_t low = static_cast<uint32_t>(engine_()) >> 6;
  return (high * 67108864.0 + low) / 9007199254740992.0;
}

double RandomState::normal() {
  if (has_spare_) {
    has_spare_ = false;
    return spare_;
  }
  double x1 = 0, x2 = 0, r2 = 0;
  do {
    x1 = 2.0 * uniform() - 1.0;
    x2 = 2.0 * uniform() - 1.0;
    r2 = x1 * x1 + x2 * x2;
  } while (r2 >= 1.0 || r2 == 0.0);
  const double f = std::sqrt(-2.0 * std::log(r2) / r2);
  spare_ = f * x1;
  has_spare_ = true;
  return f * x2;
}

at::Tensor RandomState::normals(at::IntArrayRef sizes) {
  std::vector<double> values(static_cast<size_t>(c10::multiply_integers(sizes)));
  std::generate(values.begin(), values.end(), [this] { return normal(); });
  return at::tensor(values, at::TensorOptions(at::kDouble)).view(sizes);
}

uint32_t RandomState::at_most(uint32_t bound) {
  uint32_t mask = bound;
  for (const int shift : {1, 2, 4, 8, 16}) mask |= mask >> shift;
  uint32_t value = 0;
  do {
    value = static_cast<uint32_t>(engine_()) & mask;
  } while (value > bound);
  return value;
}

at::Tensor RandomState::permutation(int64_t n) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  for (size_t i = order.size(); i-- > 1;) std::swap(order[i], order[at_most(static_cast<uint32_t>(i))]);
  return at::tensor(order, at::TensorOptions(at::kLong));
}

RegressionData make_regression(int64_t n, int64_t p, double noise, uint32_t seed) {
  RandomState random(seed);
  at::Tensor X = random.normals({n, p});
  at::Tensor coefficients = at::zeros({p}, at::kDouble);
  for (int64_t j = 0; j < std::min<int64_t>(p, 10); ++j) coefficients[j] = 100.0 * random.uniform();
  at::Tensor t = X.mv(coefficients);
  if (noise > 0) t = t + noise * random.normals({n});
  const at::Tensor rows = random.permutation(n);
  const at::Tensor columns = random.permutation(p);
  return {X.index_select(0, rows).index_select(1, columns).contiguous(), t.index_select(0, rows)};
}

}  // namespace bilevel
