#include "bilevel/core/layout.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bilevel/core/error.h"

namespace bilevel {

Layout& Layout::add(std::string name, std::vector<int64_t> shape) {
  require(!has(name), fmt::format("Layout::add: the part \"{}\" is there already.", name));
  int64_t size = 1;
  for (const int64_t extent : shape) {
    require(extent >= 0, fmt::format("Layout::add: part \"{}\" has the negative extent {}.", name, extent));
    size *= extent;
  }
  parts_.push_back({std::move(name), std::move(shape), size_, size});
  sizes_.push_back(size);
  size_ += size;
  return *this;
}

bool Layout::has(const std::string& name) const {
  return std::any_of(parts_.begin(), parts_.end(), [&](const Part& part) { return part.name == name; });
}

const Part& Layout::part(const std::string& name) const {
  std::vector<std::string> names;
  for (const Part& part : parts_) {
    if (part.name == name) return part;
    names.push_back(part.name);
  }
  throw Error(fmt::format("Layout::part: there is no part \"{}\".{}", name, suggestion(name, names)));
}

std::vector<at::Tensor> Layout::split(const at::Tensor& flat) const {
  if (flat.dim() != 1 || flat.size(0) != size_) {  // in the hot path: the message is made only when it is needed
    throw Error(
        fmt::format("Layout::split: expected a vector of {} elements, got shape [{}].", size_, fmt::join(flat.sizes(), ", ")));
  }
  if (parts_.size() == 1) return {flat.view(parts_[0].shape)};
  std::vector<at::Tensor> views = flat.split_with_sizes(sizes_);
  for (size_t i = 0; i < views.size(); ++i) views[i] = views[i].view(parts_[i].shape);
  return views;
}

at::Tensor Layout::join(const std::vector<at::Tensor>& parts) const {
  require(parts.size() == parts_.size(), fmt::format("Layout::join: expected {} parts, got {}.", parts_.size(), parts.size()));
  std::vector<at::Tensor> flat;
  for (size_t i = 0; i < parts.size(); ++i) {
    require(parts[i].sizes() == at::IntArrayRef(parts_[i].shape),
            fmt::format("Layout::join: part \"{}\" should have shape [{}], got [{}].", parts_[i].name,
                        fmt::join(parts_[i].shape, ", "), fmt::join(parts[i].sizes(), ", ")));
    flat.push_back(parts[i].reshape({-1}));
  }
  return flat.empty() ? at::empty({0}) : at::cat(flat);
}

std::string Layout::element_name(int64_t index) const {
  for (const Part& part : parts_) {
    int64_t rest = index - part.offset;
    if (rest < 0 || rest >= part.size) continue;
    std::vector<int64_t> position(part.shape.size());
    for (size_t d = part.shape.size(); d-- > 0; rest /= part.shape[d]) position[d] = rest % part.shape[d];
    return position.empty() ? part.name : fmt::format("{}[{}]", part.name, fmt::join(position, ","));
  }
  throw Error(fmt::format("Layout::element_name: {} is outside 0…{}.", index, size_ - 1));
}

}  // namespace bilevel
