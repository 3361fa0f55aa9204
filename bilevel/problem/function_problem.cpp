#include "bilevel/problem/function_problem.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <tuple>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

at::Tensor scalar(const at::Tensor& loss, std::string_view which) {
  require(loss.defined() && loss.numel() == 1,
          fmt::format("FunctionProblem: {} should return a scalar, got {}.", which,
                      loss.defined() ? fmt::format("shape [{}]", fmt::join(loss.sizes(), ", ")) : "an undefined tensor"));
  return loss.reshape({});
}

}  // namespace

FunctionProblem::FunctionProblem(FunctionProblemOptions options) : options_(std::move(options)) {
  require(options_.inner_loss || options_.optimality_map,
          "FunctionProblem: inner_loss is missing; give it, or an optimality_map.");
  require(static_cast<bool>(options_.outer_loss), "FunctionProblem: outer_loss is missing; both losses are needed.");
  require(!options_.inner_loss || !options_.optimality_map,
          "FunctionProblem: inner_loss and optimality_map are both given; y solves one of them, and one is to be given.");
  for (const auto& [name, start, layout] :
       {std::tuple{"x", &options_.x0, &options_.outer_layout}, std::tuple{"y", &options_.y0, &options_.inner_layout}}) {
    require(start->defined(), fmt::format("FunctionProblem: {}0 is missing; it says size, dtype and device of {}.", name, name));
    if (layout->parts().empty()) layout->add(name, {start->numel()});
    *start = start->detach().reshape({-1}).clone();
  }
  check_point(*this, options_.x0, options_.y0, "FunctionProblem");
  require(options_.x0.scalar_type() == options_.y0.scalar_type() && options_.x0.device() == options_.y0.device(),
          fmt::format("FunctionProblem: x0 is {} on {} and y0 is {} on {}; one dtype and one device would be right.",
                      c10::toString(options_.x0.scalar_type()), options_.x0.device().str(),
                      c10::toString(options_.y0.scalar_type()), options_.y0.device().str()));
  const size_t constraints = options_.outer_constraints.size(), parts = options_.outer_layout.parts().size();
  require(constraints == 0 || constraints == parts,
          fmt::format("FunctionProblem: {} constraints for {} parts of x; one for each part, or none, would be right.",
                      constraints, parts));
}

at::Tensor FunctionProblem::inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch& /*batch*/) const {
  require(static_cast<bool>(options_.inner_loss), "FunctionProblem::inner_loss: this problem is given by its optimality map.");
  return scalar(options_.inner_loss(x, y), "inner_loss");
}

at::Tensor FunctionProblem::outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch& /*batch*/) const {
  return scalar(options_.outer_loss(x, y), "outer_loss");
}

at::Tensor FunctionProblem::optimality_map(const at::Tensor& x, const at::Tensor& y, const Batch& batch) const {
  if (!options_.optimality_map) return Problem::optimality_map(x, y, batch);
  return options_.optimality_map(x, y);
}

InnerConstraints FunctionProblem::inner_constraints(const at::Tensor& x) const {
  return options_.inner_constraints ? options_.inner_constraints(x) : InnerConstraints{};
}

at::Tensor FunctionProblem::initial_inner(const at::Tensor& /*x*/, int64_t /*slice*/) const { return options_.y0; }

}  // namespace bilevel
