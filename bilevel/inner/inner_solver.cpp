#include "bilevel/inner/inner_solver.h"

namespace bilevel {

at::Tensor InnerSolver::residual(const Problem&, const at::Tensor&, const at::Tensor&, const at::Tensor& gradient) const {
  return gradient;
}

}  // namespace bilevel
