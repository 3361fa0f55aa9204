#include "bilevel/core/norm.h"

#include <ATen/ATen.h>

namespace bilevel {

double norm_of(const at::Tensor& v) { return at::linalg_vector_norm(v).item<double>(); }

double max_norm_of(const at::Tensor& v) { return v.defined() && v.numel() > 0 ? v.detach().abs().max().item<double>() : 0.0; }

}  // namespace bilevel
