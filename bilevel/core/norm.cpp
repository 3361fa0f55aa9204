#include "bilevel/core/norm.h"

#include <ATen/ATen.h>

namespace bilevel {

double norm_of(const at::Tensor& v) { return at::linalg_vector_norm(v).item<double>(); }

}  // namespace bilevel
