#include "python/parts.h"

#include <ATen/ATen.h>
#include <c10/util/strides.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "bilevel/core/error.h"

namespace bilevel::python {

using torch::autograd::AutogradContext;
using torch::autograd::Variable;
using torch::autograd::variable_list;

struct Parts::Strided : torch::CustomClassHolder {
  explicit Strided(Layout of) : layout(std::move(of)) {
    for (const Part& part : layout.parts()) strides.push_back(c10::contiguous_strides(at::IntArrayRef(part.shape)));
  }
  at::Tensor part(const at::Tensor& flat, size_t i) const {
    const Part& part = layout.parts()[i];
    return flat.as_strided(part.shape, strides[i], flat.storage_offset() + part.offset);
  }
  static Held kept(AutogradContext* context) {
    return c10::static_intrusive_pointer_cast<Strided>(context->saved_data["parts"].toCapsule());
  }

  const Layout layout;
  std::vector<c10::DimVector> strides;
};

struct Parts::Join : torch::autograd::Function<Join> {
  static at::Tensor forward(AutogradContext* context, at::TensorList parts, const Held& to) {
    context->saved_data["parts"] = c10::IValue::make_capsule(to);
    const at::AutoDispatchBelowADInplaceOrView plain;
    at::Tensor flat = at::empty({to->layout.size()}, parts[0].options());
    for (size_t i = 0; i < parts.size(); ++i) to->part(flat, i).copy_(parts[i]);  // a transposed or expanded part is read once
    return flat;
  }
  static variable_list backward(AutogradContext* context, variable_list bars);
};

struct Parts::Split : torch::autograd::Function<Split> {
  static variable_list forward(AutogradContext* context, const at::Tensor& flat, const Held& to) {
    context->saved_data["parts"] = c10::IValue::make_capsule(to);
    const at::Tensor whole = flat.contiguous();
    std::vector<at::Tensor> parts;
    for (size_t i = 0; i < to->strides.size(); ++i) parts.push_back(to->part(whole, i));
    return parts;
  }
  static variable_list backward(AutogradContext* context, variable_list bars) {
    return {Join::apply(at::TensorList(bars), Strided::kept(context)), Variable()};
  }
};

variable_list Parts::Join::backward(AutogradContext* context, variable_list bars) {
  variable_list parts = Split::apply(bars[0], Strided::kept(context));
  parts.emplace_back();  // of the layout
  return parts;
}

Parts::Parts(Layout layout) : parts_(c10::make_intrusive<Strided>(std::move(layout))) {}
Parts::~Parts() = default;

// In the hot path: the messages are made only when they are needed.
std::vector<at::Tensor> Parts::split(const at::Tensor& flat) const {
  const int64_t size = parts_->layout.size();
  if (flat.dim() != 1 || flat.size(0) != size)
    throw Error(fmt::format("Parts::split: expected a vector of {} elements, got {}.", size, flat.numel()));
  return Split::apply(flat, parts_);
}

at::Tensor Parts::join(const std::vector<at::Tensor>& parts) const {
  const std::vector<Part>& wanted = parts_->layout.parts();
  bool fits = parts.size() == wanted.size();
  for (size_t i = 0; fits && i < parts.size(); ++i) fits = parts[i].sizes() == at::IntArrayRef(wanted[i].shape);
  if (!fits) throw Error("Parts::join: the parts should have the shapes of the layout.");
  return Join::apply(at::TensorList(parts), parts_);
}

}  // namespace bilevel::python
