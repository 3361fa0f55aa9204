#include "bilevel/oracle/processes.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>

#include "bilevel/core/error.h"

namespace bilevel {

struct Processes::Group {
  c10::intrusive_ptr<c10d::ProcessGroup> c10d;
};

Processes::Processes(const c10::intrusive_ptr<c10d::ProcessGroup>& group, c10::Device device) : device_(device) {
  require(group.defined(), "Processes: the process group is empty; give one that has been initialised.");
  group_.reset(new Group{group});
  rank_ = group->getRank();
  size_ = group->getSize();
}

Processes::~Processes() = default;

std::shared_ptr<Processes> Processes::named(const std::string& group) {
  return std::make_shared<Processes>(c10d::resolve_process_group(group));
}

void Processes::set_timeout(double seconds) {
  require(seconds > 0 && std::isfinite(seconds),
          fmt::format("Processes::set_timeout: {} seconds cannot be waited; more than 0 would be right.", seconds));
  timeout_ = seconds;
}

void Processes::all_reduce(const at::Tensor& buffer) const {
  std::vector<at::Tensor> tensors = {buffer};
  c10d::AllreduceOptions options;
  options.timeout = std::chrono::milliseconds(std::max<int64_t>(1, std::llround(1000 * timeout_)));
  std::string reason;
  try {
    group_->c10d->allreduce(tensors, options)->wait();
    bytes_ += static_cast<int64_t>(buffer.nbytes());
    ++exchanges_;
    return;
  } catch (const c10::Error& error) {
    reason = error.what_without_backtrace();
  } catch (const std::exception& error) {
    reason = error.what();
  }
  throw LostProcess(fmt::format("Process {} of {} lost another one: it has ended, or did not answer within {:g} s ({}).", rank_,
                                size_, timeout_, reason));
}

void Processes::sum(const std::vector<at::Tensor>& pieces) const {
  if (size_ == 1 || pieces.empty()) return;
  const at::NoGradGuard no_grad;
  if (pieces.size() == 1 && pieces.front().is_contiguous()) return all_reduce(pieces.front());
  std::vector<at::Tensor> flat;
  std::vector<int64_t> sizes;
  for (const at::Tensor& piece : pieces) {
    flat.push_back(piece.reshape({-1}));
    sizes.push_back(piece.numel());
  }
  const at::Tensor buffer = at::cat(flat);
  all_reduce(buffer);
  const std::vector<at::Tensor> sums = buffer.split_with_sizes(sizes);
  for (size_t i = 0; i < pieces.size(); ++i) pieces[i].copy_(sums[i].view(pieces[i].sizes()));
}

std::vector<double> Processes::of_all(double value) const {
  const at::Tensor values = at::zeros({size_}, at::kDouble);
  values[rank_] = value;
  const at::Tensor all = values.to(device_);
  sum({all});
  const at::Tensor here = all.to(at::kCPU);
  return {here.const_data_ptr<double>(), here.const_data_ptr<double>() + size_};
}

double Processes::greatest(double value) const {
  const std::vector<double> all = of_all(value);
  return *std::max_element(all.begin(), all.end());
}

std::string Processes::of_first(const std::string& text) const {
  const auto length = static_cast<int64_t>(of_all(first() ? static_cast<double>(text.size()) : 0.0).front());
  const at::Tensor bytes = at::zeros({length}, at::kByte);
  if (first()) std::memcpy(bytes.mutable_data_ptr(), text.data(), text.size());
  if (length == 0) return "";
  const at::Tensor all = bytes.to(device_);
  sum({all});
  const at::Tensor here = all.to(at::kCPU);
  return {reinterpret_cast<const char*>(here.const_data_ptr<uint8_t>()), static_cast<size_t>(length)};
}

}  // namespace bilevel
