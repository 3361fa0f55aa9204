#include "bilevel/core/stream.h"

#include <cmath>
#include <numbers>

#include <ATen/ATen.h>
#include <ATen/core/PhiloxRNGEngine.h>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

// SplitMix64 (Steele, Lea & Flood 2014): spreads nearby seeds over the key space.
uint64_t mix(uint64_t z) {
  z += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace

Stream::Stream(uint64_t seed, std::string_view purpose) : key_(mix(seed)) {
  for (const char c : purpose) key_ = mix(key_ ^ static_cast<unsigned char>(c));
}

uint64_t Draw::seed() const { return mix(key_ ^ mix(t_)); }

std::vector<double> Draw::uniforms(int64_t count) {
  // Sub-stream t of the key; two 32-bit words make one double of 53 random bits, and a call of Philox gives four words.
  at::Philox4_32 engine(key_, t_, drawn_);
  std::vector<double> values(static_cast<size_t>(count));
  for (double& value : values) {
    const uint64_t high = engine() >> 5;
    const uint64_t low = engine() >> 6;
    value = (static_cast<double>(high) * 67108864.0 + static_cast<double>(low)) / 9007199254740992.0;
  }
  drawn_ += (static_cast<uint64_t>(count) + 1) / 2;
  return values;
}

at::Tensor Draw::uniform(at::IntArrayRef sizes, at::ScalarType dtype) {
  const auto values = uniforms(c10::multiply_integers(sizes));
  return at::tensor(values, at::TensorOptions(at::kDouble)).view(sizes).to(dtype);
}

at::Tensor Draw::normal(at::IntArrayRef sizes, at::ScalarType dtype) {
  const int64_t count = c10::multiply_integers(sizes);
  const auto u = uniforms(2 * count);
  std::vector<double> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {  // Box & Muller 1958
    values[i] = std::sqrt(-2.0 * std::log1p(-u[2 * i])) * std::cos(2.0 * std::numbers::pi * u[2 * i + 1]);
  }
  return at::tensor(values, at::TensorOptions(at::kDouble)).view(sizes).to(dtype);
}

at::Tensor Draw::integers(int64_t bound, at::IntArrayRef sizes) {
  require(bound > 0, "Draw::integers: the bound must be positive.");
  const auto u = uniforms(c10::multiply_integers(sizes));
  std::vector<int64_t> values(u.size());
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int64_t>(u[i] * static_cast<double>(bound));
  return at::tensor(values, at::TensorOptions(at::kLong)).view(sizes);
}

at::Tensor Draw::permutation(int64_t n) {
  const auto u = uniforms(n);
  std::vector<int64_t> order(static_cast<size_t>(n));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
  for (size_t i = order.size(); i-- > 1;) std::swap(order[i], order[static_cast<size_t>(u[i] * static_cast<double>(i + 1))]);
  return at::tensor(order, at::TensorOptions(at::kLong));
}

}  // namespace bilevel
