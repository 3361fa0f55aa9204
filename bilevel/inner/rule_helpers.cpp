#include "bilevel/inner/rule_helpers.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/config.h"
#include "bilevel/core/error.h"
#include "bilevel/inner/update_rule.h"

namespace bilevel {

void check_learned(const UpdateRule& rule, const std::vector<std::string>& learned) {
  const auto known = rule.hyperparameters();
  for (const auto& name : learned) {
    require(contains(known, name), fmt::format("The rule {} has no \"{}\" that x could determine; its hyperparameters are {}.",
                                               rule.name(), name, one_of(known)));
  }
}

void read_betas(Section& section, double& beta1, double& beta2) {
  std::vector<double> betas{beta1, beta2};
  section.read("betas", betas);
  if (betas.size() != 2) section.fail("betas", fmt::format("expected two numbers, got {}.", betas.size()));
  beta1 = betas[0];
  beta2 = betas[1];
}

std::vector<std::string> violations_of_moments(double lr, double beta1, double beta2, double eps, double weight_decay) {
  std::vector<std::string> found;
  if (!(lr >= 0)) found.push_back(fmt::format("lr = {} must be at least 0", lr));
  if (!(beta1 >= 0 && beta1 < 1)) found.push_back(fmt::format("betas[0] = {} must lie in [0, 1)", beta1));
  if (!(beta2 >= 0 && beta2 < 1)) found.push_back(fmt::format("betas[1] = {} must lie in [0, 1)", beta2));
  if (!(eps >= 0)) found.push_back(fmt::format("eps = {} must be at least 0", eps));
  if (!(weight_decay >= 0)) found.push_back(fmt::format("weight_decay = {} must be at least 0", weight_decay));
  return found;
}

at::Tensor finite_sqrt(const at::Tensor& u) {
  const at::Tensor positive = u > 0;
  return at::where(positive, at::where(positive, u, at::ones_like(u)).sqrt(), at::zeros_like(u));
}

}  // namespace bilevel
