#include "bilevel/problem/problem.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bilevel/core/error.h"
#include "bilevel/problem/inner_constraints.h"
#include "bilevel/problem/likelihood.h"

namespace bilevel {

at::Tensor Problem::initial_outer() const { return at::zeros({outer_layout().size()}, at::kFloat); }

at::Tensor Problem::initial_inner(const at::Tensor& x, int64_t /*slice*/) const {
  return at::zeros({inner_layout().size()}, x.options().requires_grad(false));
}

Problem::RuleHyperparameters Problem::rule_hyperparameters(const at::Tensor& /*x*/, int64_t /*t*/) const { return {}; }

at::Tensor Problem::outer_sample_losses(const at::Tensor& /*x*/, const at::Tensor& /*y*/, const Batch& /*batch*/) const {
  throw Error("Problem::outer_sample_losses: this problem offers no losses of single samples.");
}

at::Tensor Problem::optimality_map(const at::Tensor& /*x*/, const at::Tensor& /*y*/, const Batch& /*batch*/) const {
  throw Error("Problem::optimality_map: this problem is given by its inner loss.");
}

InnerConstraints Problem::inner_constraints(const at::Tensor& /*x*/) const { return {}; }

double Problem::inner_strong_convexity(const at::Tensor& /*x*/) const { return 0.0; }

at::Tensor Problem::inner_outputs(const at::Tensor& /*y*/, const Batch& /*batch*/) const {
  throw Error("Problem::inner_outputs: this problem offers no outputs, which Gauss–Newton needs. Use curvature = \"hessian\".");
}

at::Tensor Problem::inner_loss_of_outputs(const at::Tensor& /*x*/, const at::Tensor& /*y*/, const at::Tensor& /*outputs*/,
                                          const Batch& /*batch*/) const {
  throw Error("Problem::inner_loss_of_outputs: this problem offers no outputs, which Gauss–Newton needs.");
}

at::Tensor Problem::outer_outputs(const at::Tensor& /*y*/, const Batch& /*batch*/) const {
  throw Error("Problem::outer_outputs: this problem offers no outputs on its outer samples, which function-space methods need.");
}

at::Tensor Problem::outer_loss_of_outputs(const at::Tensor& /*x*/, const at::Tensor& /*y*/, const at::Tensor& /*outputs*/,
                                          const Batch& /*batch*/) const {
  throw Error("Problem::outer_loss_of_outputs: this problem offers no outputs on its outer samples.");
}

at::Tensor Problem::inner_features(const at::Tensor& /*y*/, const Batch& /*batch*/) const {
  throw Error("Problem::inner_features: this problem offers no output layer (Problem::output_layer).");
}

at::Tensor Problem::outer_features(const at::Tensor& /*y*/, const Batch& /*batch*/) const {
  throw Error("Problem::outer_features: this problem offers no output layer (Problem::output_layer).");
}

Likelihood Problem::inner_likelihood(const at::Tensor& /*x*/, const Batch& /*batch*/) const {
  throw Error("Problem::inner_likelihood: this problem does not offer its inner loss as a likelihood.");
}

at::Tensor Problem::likelihood_outputs(const at::Tensor& /*x*/, const at::Tensor& y, const Batch& batch) const {
  return inner_outputs(y, batch);
}

Problem::Preconditioner Problem::inner_preconditioner(const at::Tensor& /*x*/) const { return {}; }

std::map<std::string, double> Problem::metrics(const at::Tensor& /*x*/, const at::Tensor& /*y*/) const { return {}; }

at::Tensor output_layer_positions(const Problem& problem) {
  const auto layer = problem.output_layer();
  require(layer.has_value(), "output_layer_positions: this problem offers no output layer (Problem::output_layer).");
  std::vector<at::Tensor> positions;
  for (const std::string& name : {layer->weight, layer->bias}) {
    if (name.empty()) continue;
    const Part& part = problem.inner_layout().part(name);
    positions.push_back(at::arange(part.offset, part.offset + part.size, at::kLong));
  }
  return at::cat(positions);
}

void check_point(const Problem& problem, const at::Tensor& x, const at::Tensor& y, std::string_view caller) {
  const auto check = [&](const at::Tensor& v, const char* name, int64_t size) {
    if (!v.defined() || v.dim() != 1 || v.size(0) != size) {
      throw Error(fmt::format("{}: {} should be a vector of {} elements, got {}.", caller, name, size,
                              v.defined() ? fmt::format("shape [{}]", fmt::join(v.sizes(), ", ")) : "an undefined tensor"));
    }
    if (!at::isFloatingType(v.scalar_type())) {
      throw Error(fmt::format("{}: {} should be float32 or float64, got {}.", caller, name, c10::toString(v.scalar_type())));
    }
  };
  check(x, "x", problem.outer_layout().size());
  check(y, "y", problem.inner_layout().size());
}

}  // namespace bilevel
