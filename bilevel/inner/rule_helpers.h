#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

namespace bilevel {

class Section;
class UpdateRule;

inline bool contains(const std::vector<std::string>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// The cotangent of a hyperparameter h in h ⊙ a, given a and that of the product: summed where h is a scalar.
inline at::Tensor hyperparameter_bar(const at::Tensor& h, const at::Tensor& a, const at::Tensor& bar) {
  return h.dim() == 0 ? a.dot(bar) : a.mul(bar);
}

/// Throws Error where x is to determine a hyperparameter that `rule` does not have.
void check_learned(const UpdateRule& rule, const std::vector<std::string>& learned);

/// Reads `betas`, a list of two numbers.
void read_betas(Section& section, double& beta1, double& beta2);
/// The violations of the options that Adam and Adamax have alike.
std::vector<std::string> violations_of_moments(double lr, double beta1, double beta2, double eps, double weight_decay);

/// √u with the derivative 0 where u ≤ 0, in place of an infinite one; 0 where u < 0 by rounding.
at::Tensor finite_sqrt(const at::Tensor& u);

}  // namespace bilevel
