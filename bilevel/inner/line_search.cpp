#include "bilevel/inner/line_search.h"

#include <algorithm>
#include <cmath>

namespace bilevel {
namespace {

// The minimiser of the cubic through the values and slopes at both ends (Nocedal & Wright, eq. 3.59), or where rounding hides the
// values the zero of the line through the slopes; a tenth of the interval away from its ends.
double between(const LinePoint& low, const LinePoint& high, double rounding) {
  const double width = high.t - low.t;
  double t = low.t + 0.5 * width;
  if (std::isfinite(high.loss) && std::isfinite(high.slope)) {
    if (std::abs(high.loss - low.loss) <= 10 * rounding * std::abs(low.loss)) {
      t = low.t - low.slope * width / (high.slope - low.slope);
    } else {
      const double d1 = low.slope + high.slope - 3 * (low.loss - high.loss) / (low.t - high.t);
      const double root = d1 * d1 - low.slope * high.slope;
      const double d2 = std::copysign(std::sqrt(std::max(root, 0.0)), width);
      if (root >= 0) t = high.t - width * (high.slope + d2 - d1) / (high.slope - low.slope + 2 * d2);
    }
  }
  const double a = low.t + 0.1 * width, b = high.t - 0.1 * width;
  return std::isfinite(t) ? std::clamp(t, std::min(a, b), std::max(a, b)) : low.t + 0.5 * width;
}

}  // namespace

LinePoint strong_wolfe(const std::function<LinePoint(double)>& evaluate, const LinePoint& start, double first,
                       const LineSearchOptions& options) {
  const double slack = options.rounding * std::abs(start.loss), slope = start.slope;
  const double c1 = options.decrease, c2 = options.curvature;
  LinePoint low = start, high;
  bool bracketed = false;
  double t = first;
  for (int64_t n = 0; n < options.max_evaluations; ++n) {
    LinePoint p = evaluate(t);
    const bool finite = std::isfinite(p.loss) && std::isfinite(p.slope);
    const bool decreases = finite && p.loss <= start.loss + c1 * t * slope;
    const bool level = finite && p.loss <= start.loss + slack && p.slope <= (2 * c1 - 1) * slope;
    if ((decreases && std::abs(p.slope) <= -c2 * slope) || (level && p.slope >= c2 * slope)) return p;
    if (!(decreases || level) || p.loss > low.loss + slack) {
      high = std::move(p);
      bracketed = true;
    } else if (!bracketed && p.slope < 0) {
      low = std::move(p);  // still downhill: further
      t *= 3;
      continue;
    } else {
      if (!bracketed || p.slope * (high.t - low.t) >= 0) high = low;
      low = std::move(p);
      bracketed = true;
    }
    t = between(low, high, options.rounding);
  }
  return low;
}

}  // namespace bilevel
