#pragma once
#include <cmath>
#include <vector>

namespace bilevel {

/// Of the mean of n independent values, √(Σ (v − mean)² / (n (n − 1))); 0 for fewer than two.
inline double standard_error(const std::vector<double>& values, double mean) {
  if (values.size() < 2) return 0;
  const auto n = static_cast<double>(values.size());
  double squares = 0;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / (n - 1) / n);
}

}  // namespace bilevel
