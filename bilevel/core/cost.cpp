#include "bilevel/core/cost.h"

#include <algorithm>

namespace bilevel {

Cost& Cost::operator+=(const Cost& other) {
  forwards += other.forwards;
  gradients += other.gradients;
  hvps += other.hvps;
  cross_products += other.cross_products;
  samples += other.samples;
  seconds += other.seconds;
  second_thread_seconds += other.second_thread_seconds;
  hidden_seconds += other.hidden_seconds;
  peak_bytes = std::max(peak_bytes, other.peak_bytes);
  return *this;
}

Cost Cost::operator-(const Cost& earlier) const {
  Cost difference = *this;
  difference.forwards -= earlier.forwards;
  difference.gradients -= earlier.gradients;
  difference.hvps -= earlier.hvps;
  difference.cross_products -= earlier.cross_products;
  difference.samples -= earlier.samples;
  difference.seconds -= earlier.seconds;
  difference.second_thread_seconds -= earlier.second_thread_seconds;
  difference.hidden_seconds -= earlier.hidden_seconds;
  return difference;
}

}  // namespace bilevel
