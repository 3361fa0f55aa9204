#include "bilevel/algorithm/projection.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "bilevel/core/error.h"
#include "bilevel/core/vectors.h"

namespace bilevel {

at::Tensor project(const Problem& problem, const at::Tensor& x) {
  const std::vector<Constraint> constraints = problem.outer_constraints();
  if (constraints.empty()) return x;
  const Layout& layout = problem.outer_layout();
  require(constraints.size() == layout.parts().size(),
          fmt::format("The problem gives {} constraints for {} parts of x; one for each part, or none, would be right.",
                      constraints.size(), layout.parts().size()));
  std::vector<at::Tensor> parts;
  for (size_t i = 0; i < constraints.size(); ++i) {
    const Part& part = layout.parts()[i];
    parts.push_back(constraints[i].project(x.narrow(0, part.offset, part.size)));
  }
  return at::cat(parts);
}

void require_inside(const Problem& problem, const at::Tensor& x) {
  const double moved = norm_of(project(problem, x) - x);
  require(moved <= 1e-6 * std::max(1.0, norm_of(x)),
          fmt::format("The initial x does not satisfy the constraints on x (it is {:.3g} away); start inside them.", moved));
}

}  // namespace bilevel
