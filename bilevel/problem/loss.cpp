#include "bilevel/problem/loss.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bilevel/core/error.h"

namespace bilevel {

namespace {

constexpr int64_t kMaxClasses = 65536;

// Whole numbers in 0…bound−1, whatever their type.
at::Tensor class_labels(const at::Tensor& labels, int64_t bound, const std::string& what) {
  require(labels.dim() == 1,
          fmt::format("{}: class labels should have shape [n], got [{}].", what, fmt::join(labels.sizes(), ", ")));
  const at::Tensor whole = labels.to(at::kLong);
  if (labels.is_floating_point()) {
    const at::Tensor bad = whole.to(labels.scalar_type()).ne(labels).nonzero();
    if (bad.size(0) > 0) {
      const int64_t sample = bad[0][0].item<int64_t>();
      throw Error(fmt::format("{}: the label of sample {} is {}, and class labels are whole numbers.", what, sample,
                              labels[sample].item<double>()));
    }
  }
  const at::Tensor outside = whole.lt(0).logical_or(whole.ge(bound)).nonzero();
  if (outside.size(0) > 0) {
    const int64_t sample = outside[0][0].item<int64_t>();
    throw Error(
        fmt::format("{}: the label of sample {} is {}, outside 0…{}.", what, sample, whole[sample].item<int64_t>(), bound - 1));
  }
  return whole;
}

}  // namespace

const std::vector<std::string>& Loss::names() {
  static const std::vector<std::string> names = {"squared", "logistic", "softmax"};
  return names;
}

Loss::Loss(const std::string& name) {
  const auto found = std::find(names().begin(), names().end(), name);
  require(found != names().end(), fmt::format("Loss: \"{}\" is not known.{}", name, suggestion(name, names())));
  kind_ = static_cast<Kind>(found - names().begin());
}

std::string Loss::name() const { return names()[static_cast<size_t>(kind_)]; }

int64_t Loss::output_size(const at::Tensor& labels) const {
  if (kind_ == Kind::kSoftmax) {
    const double last = labels.numel() == 0 ? 0.0 : labels.max().item<double>();
    // Far more classes than anyone has is a column of identifiers, and its logits would not fit the memory.
    require(last < kMaxClasses,
            fmt::format("Loss: the largest class label is {}; class labels are 0…C−1 with C at most {}.", last, kMaxClasses));
    return std::max<int64_t>(static_cast<int64_t>(last), 0) + 1;
  }
  return kind_ == Kind::kSquared && labels.dim() == 2 ? labels.size(1) : 1;
}

at::Tensor Loss::targets(const at::Tensor& labels, int64_t output_size, at::ScalarType dtype, const std::string& what) const {
  switch (kind_) {
    case Kind::kSoftmax: return class_labels(labels, output_size, what).unsqueeze(0);
    case Kind::kLogistic: {
      require(output_size == 1, fmt::format("{}: the logistic loss takes one output, got {}.", what, output_size));
      return class_labels(labels, 2, what + " (logistic: labels 0 and 1)").to(dtype).mul(2).sub(1).unsqueeze(0);
    }
    case Kind::kSquared: break;
  }
  const at::Tensor rows = labels.dim() == 1 ? labels.unsqueeze(1) : labels;
  require(rows.dim() == 2 && rows.size(1) == output_size,
          fmt::format("{}: targets should have shape [n, {}], got [{}].", what, output_size, fmt::join(labels.sizes(), ", ")));
  const at::Tensor targets = rows.to(dtype).t().contiguous();
  require(targets.isfinite().all().item<bool>(), fmt::format("{}: a target is not finite.", what));
  return targets;
}

at::Tensor Loss::losses(const at::Tensor& logits, const at::Tensor& targets) const {
  switch (kind_) {
    // Not at::cross_entropy_loss: this form is as stable, has derivatives of every order, and takes [C, n] as it is.
    case Kind::kSoftmax: return logits.logsumexp(0) - logits.gather(0, targets).squeeze(0);
    // −log σ(±z); softplus would be cut to a line beyond its threshold.
    case Kind::kLogistic: return at::log_sigmoid(logits * targets).neg().squeeze(0);
    case Kind::kSquared: break;
  }
  const at::Tensor error = logits - targets;
  return error.size(0) == 1 ? (error * error).squeeze(0).mul(0.5) : (error * error).sum(0).mul(0.5);
}

at::Tensor Loss::probabilities(const at::Tensor& logits) const {
  switch (kind_) {
    case Kind::kSoftmax: return logits.softmax(0).t();
    case Kind::kLogistic: return at::cat({logits.neg().sigmoid(), logits.sigmoid()}).t();
    case Kind::kSquared: break;
  }
  return logits.t();
}

at::Tensor Loss::labels(const at::Tensor& logits) const {
  require(classifies(), "Loss::labels: the squared loss has predictions, not classes.");
  return kind_ == Kind::kSoftmax ? logits.argmax(0) : logits.squeeze(0).gt(0).to(at::kLong);
}

double Loss::score(const at::Tensor& logits, const at::Tensor& targets) const {
  const at::NoGradGuard no_grad;
  if (!classifies()) return (logits - targets).square().mean().item<double>();
  const at::Tensor truth = kind_ == Kind::kSoftmax ? targets.squeeze(0) : targets.squeeze(0).gt(0).to(at::kLong);
  return labels(logits).eq(truth).to(at::kDouble).mean().item<double>();
}

}  // namespace bilevel
