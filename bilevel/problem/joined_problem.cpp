#include "bilevel/problem/joined_problem.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bilevel/core/error.h"

namespace bilevel {

JoinedProblem::JoinedProblem(const Problem& base, Losses inner, Losses outer)
    : base_(base), inner_(std::move(inner)), outer_(std::move(outer)) {
  require(inner_ && outer_, "JoinedProblem: both losses are needed.");
  require(
      !base.has_rule_hyperparameters() && !base.has_inner_constraints() && !base.has_optimality_map(),
      "JoinedProblem: the tasks should have plain inner losses, without constraints on y or hyperparameters of the update rule.");
  layout_.add("tasks", {base.inner_problems(), base.inner_layout().size()});
}

at::Tensor JoinedProblem::losses(const Losses& of, const char* name, const at::Tensor& x, const at::Tensor& y) const {
  const int64_t k = base_.inner_problems();
  const at::Tensor found = of(x, y.view({k, base_.inner_layout().size()}));
  require(found.dim() == 1 && found.size(0) == k,
          fmt::format("JoinedProblem: the {} losses should be [{}], got [{}].", name, k, fmt::join(found.sizes(), ", ")));
  return found;
}

at::Tensor JoinedProblem::inner_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const {
  return losses(inner_, "inner", x, y).sum();
}

at::Tensor JoinedProblem::outer_loss(const at::Tensor& x, const at::Tensor& y, const Batch&) const {
  return losses(outer_, "outer", x, y).mean();
}

at::Tensor JoinedProblem::initial_inner(const at::Tensor& x, int64_t) const {
  std::vector<at::Tensor> starts;
  for (int64_t s = 0; s < base_.inner_problems(); ++s) starts.push_back(base_.initial_inner(x, s));
  return at::cat(starts);
}

}  // namespace bilevel
