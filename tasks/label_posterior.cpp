#include "tasks/label_posterior.h"

#include <ATen/ATen.h>

namespace bilevel {

LabelPosterior label_posterior(const at::Tensor& probabilities, const at::Tensor& labels, const at::Tensor& sources,
                               int64_t source_count, int64_t iterations, double prior) {
  const at::NoGradGuard no_grad;
  const int64_t classes = probabilities.size(0);
  const at::Tensor P = probabilities.to(at::kDouble).t().contiguous();  // [n, C]
  const at::Tensor cell = sources * classes + labels;                   // (s, y) of each sample
  at::Tensor Q = P, T;
  for (int64_t k = 0; k < iterations; ++k) {
    const at::Tensor counts =
        at::full({source_count * classes, classes}, prior, P.options()).index_add(0, cell, Q);  // [(s, y), c]
    T = counts.view({source_count, classes, classes});
    T = T / T.sum(1, /*keepdim=*/true);  // over y: each true class distributes its labels
    Q = P * T.reshape({source_count * classes, classes}).index_select(0, cell);
    Q = Q / Q.sum(1, /*keepdim=*/true);
  }
  const auto dtype = probabilities.scalar_type();
  return {Q.t().to(dtype), Q.gather(1, labels.unsqueeze(1)).squeeze(1).to(dtype), T.transpose(1, 2).to(dtype)};
}

}  // namespace bilevel
