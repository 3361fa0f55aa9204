#include "tasks/planted_errors.h"

#include <ATen/ATen.h>

#include "bilevel/core/error.h"

namespace bilevel {

double area_under_curve(const at::Tensor& score, const at::Tensor& positive, const at::Tensor& weight) {
  const at::Tensor w = weight.defined() ? weight.to(at::kDouble) : at::ones({score.size(0)}, at::kDouble);
  const auto [values, place] = at::_unique(score.to(at::kDouble), /*sorted=*/true, /*return_inverse=*/true);
  const at::Tensor zeros = at::zeros_like(values);
  const at::Tensor p = zeros.index_add(0, place, w * positive), q = zeros.index_add(0, place, w * positive.logical_not());
  const double both = (p.sum() * q.sum()).item<double>();
  require(both > 0, "area_under_curve: both kinds of samples are needed.");
  const at::Tensor below = q.cumsum(0) - q;
  return p.dot(below + q / 2).item<double>() / both;
}

PlantedErrors planted_errors(const at::Tensor& confusion, const at::Tensor& share, const at::Tensor& truth,
                             const at::Tensor& self, const at::Tensor& probabilities) {
  const at::NoGradGuard no_grad;
  const at::Tensor T = confusion.to(at::kDouble), P = probabilities.to(at::kDouble).t();        // [S, C, C], [m, C]
  const at::Tensor weight = share.to(at::kDouble).view({-1, 1, 1}) * T.index_select(1, truth);  // [S, m, y]
  const at::Tensor wrong = (at::arange(T.size(1)) != truth.unsqueeze(1)).expand_as(weight);
  // P_i[y] T_s[y, y] / Σ_c P_i[c] T_s[c, y]
  const at::Tensor right = P * T.diagonal(0, 1, 2).unsqueeze(1) / at::matmul(P, T);
  const auto area = [&](const at::Tensor& confidence) {
    return area_under_curve(-confidence.expand_as(weight).flatten(), wrong.flatten(), weight.flatten());
  };
  return {area(self.to(at::kDouble).t()), area(right)};
}

}  // namespace bilevel
