#include "python/parts.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/csrc/autograd/custom_function.h>

#include "bilevel/core/error.h"

namespace bilevel::python {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

struct Parts::Shapes {
  std::vector<std::vector<int64_t>> shapes, strides;
  std::vector<int64_t> offsets;
  int64_t size = 0;

  at::Tensor part(const at::Tensor& flat, size_t i) const {
    return flat.as_strided(shapes[i], strides[i], flat.storage_offset() + offsets[i]);
  }
};

namespace {

// What the two directions know of each other.
struct Held : torch::CustomClassHolder {
  explicit Held(std::shared_ptr<const void> of) : shapes(std::move(of)) {}
  std::shared_ptr<const void> shapes;
};

void hold(AutogradContext* context, const std::shared_ptr<const void>& shapes) {
  context->saved_data["shapes"] = c10::IValue::make_capsule(c10::make_intrusive<Held>(shapes));
}

std::shared_ptr<const void> held(AutogradContext* context) {
  return c10::static_intrusive_pointer_cast<Held>(context->saved_data["shapes"].toCapsule())->shapes;
}

}  // namespace

struct Parts::Join : torch::autograd::Function<Join> {
  static at::Tensor forward(AutogradContext* context, at::TensorList parts, const std::shared_ptr<const Shapes>& shapes) {
    hold(context, shapes);
    const at::AutoDispatchBelowADInplaceOrView plain;
    at::Tensor flat = at::empty({shapes->size}, parts[0].options());
    for (size_t i = 0; i < parts.size(); ++i) shapes->part(flat, i).copy_(parts[i]);  // a transposed or expanded part is read once
    return flat;
  }
  static variable_list backward(AutogradContext* context, variable_list bars);
};

struct Parts::Split : torch::autograd::Function<Split> {
  static variable_list forward(AutogradContext* context, const at::Tensor& flat, const std::shared_ptr<const Shapes>& shapes) {
    hold(context, shapes);
    const at::Tensor whole = flat.contiguous();
    std::vector<at::Tensor> parts;
    for (size_t i = 0; i < shapes->shapes.size(); ++i) parts.push_back(shapes->part(whole, i));
    return parts;
  }
  static variable_list backward(AutogradContext* context, variable_list bars) {
    const auto shapes = std::static_pointer_cast<const Shapes>(held(context));
    return {Join::apply(at::TensorList(bars), shapes), Variable()};
  }
};

variable_list Parts::Join::backward(AutogradContext* context, variable_list bars) {
  const auto shapes = std::static_pointer_cast<const Shapes>(held(context));
  variable_list parts = Split::apply(bars[0], shapes);
  parts.emplace_back();  // of the shapes
  return parts;
}

Parts::Parts(std::vector<std::vector<int64_t>> shapes) {
  Shapes all;
  for (const auto& shape : shapes) {
    std::vector<int64_t> strides(shape.size());
    int64_t size = 1;
    for (size_t i = shape.size(); i-- > 0; size *= shape[i]) strides[i] = size;
    all.strides.push_back(std::move(strides));
    all.offsets.push_back(all.size);
    all.size += size;
  }
  all.shapes = std::move(shapes);
  shapes_ = std::make_shared<const Shapes>(std::move(all));
}

std::vector<at::Tensor> Parts::split(const at::Tensor& flat) const {
  require(flat.dim() == 1 && flat.size(0) == shapes_->size,
          fmt::format("Parts::split: a vector of {} elements was expected, got {}.", shapes_->size, flat.numel()));
  return Split::apply(flat, shapes_);
}

at::Tensor Parts::join(const std::vector<at::Tensor>& parts) const {
  require(parts.size() == shapes_->shapes.size(), fmt::format("Parts::join: {} parts were expected, got {}.", shapes_->shapes.size(), parts.size()));
  for (size_t i = 0; i < parts.size(); ++i) {
    require(parts[i].sizes() == shapes_->shapes[i], fmt::format("Parts::join: part {} should have shape [{}], got [{}].", i,
                                                                fmt::join(shapes_->shapes[i], ", "), fmt::join(parts[i].sizes(), ", ")));
  }
  return Join::apply(at::TensorList(parts), shapes_);
}

}  // namespace bilevel::python
