#include "tasks/grouped_implicit.h"

#include <ATen/ATen.h>

#include "bilevel/core/error.h"

namespace bilevel {

GroupedImplicit::GroupedImplicit(std::unique_ptr<Implicit> implicit, std::vector<at::Tensor> groups, BatchPlan inner_batches,
                                 std::vector<at::Tensor>& history)
    : implicit_(std::move(implicit)),
      groups_(std::move(groups)),
      inner_batches_(std::move(inner_batches)),
      history_(history),
      q_(groups_.size()) {
  require(!groups_.empty(), "GroupedImplicit: at least one group of outer samples is needed.");
}

Hypergradient GroupedImplicit::estimate(const EstimatorInput& in) const {
  const at::NoGradGuard no_grad;
  Hypergradient mean;
  std::vector<at::Tensor> values;
  double total = 0;
  Batch inner_batch = in.inner_batch;
  inner_batch.samples = inner_batches_.samples(in.outer_batch.step);
  const auto linearization = in.oracle.linearize_inner(in.x, in.solution.y, inner_batch);
  for (size_t g = 0; g < groups_.size(); ++g) {
    EstimatorInput of_group = in;
    of_group.outer_batch.samples = groups_[g];
    of_group.inner_batch = inner_batch;
    of_group.q0 = q_[g];
    Hypergradient h = implicit_->estimate(of_group, *linearization);
    q_[g] = h.q;
    values.push_back(h.value);
    const auto size = static_cast<double>(groups_[g].size(0));
    total += size;
    if (g == 0) {
      mean = h;
      mean.value = h.value * size;
      mean.direct = h.direct * size;
      mean.outer_loss = h.outer_loss * size;
      continue;
    }
    if (h.grade > mean.grade) {
      mean.grade = h.grade;
      mean.message = h.message;
    }
    mean.value = mean.value + h.value * size;
    mean.direct = mean.direct + h.direct * size;
    mean.outer_loss += h.outer_loss * size;
    mean.certificate.relative_residual = std::max(*mean.certificate.relative_residual, *h.certificate.relative_residual);
  }
  mean.value = mean.value / total;
  mean.direct = mean.direct / total;
  mean.outer_loss /= total;
  mean.q.reset();  // each group has its own
  history_.push_back(at::stack(values));
  return mean;
}

double signal_share(const at::Tensor& groups) {
  const auto count = static_cast<double>(groups.size(0));
  if (count < 2) return 1.0;
  const at::Tensor mean = groups.mean(0);
  const double spread = (groups - mean).square().sum().item<double>() / (count * (count - 1));
  const double length = mean.dot(mean).item<double>();
  return length > 0 ? 1.0 - spread / length : 0.0;
}

}  // namespace bilevel
