#include "bilevel/core/state.h"

#include <cstdio>
#include <cstdlib>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/core/safetensors.h"

namespace bilevel {

template <class T>
const T& State::get(const std::string& name, const char* type) const {
  const auto found = values_.find(name);
  require(found != values_.end(), fmt::format("State: there is no entry \"{}\".", name));
  const T* value = std::get_if<T>(&found->second);
  require(value != nullptr, fmt::format("State: the entry \"{}\" is not {}.", name, type));
  return *value;
}

const at::Tensor& State::tensor(const std::string& name) const { return get<at::Tensor>(name, "a tensor"); }
int64_t State::integer(const std::string& name) const { return get<int64_t>(name, "an integer"); }
double State::number(const std::string& name) const { return get<double>(name, "a number"); }
const std::string& State::text(const std::string& name) const { return get<std::string>(name, "a string"); }

State State::clone() const {
  State copy = *this;
  for (auto& [name, value] : copy.values_) {
    if (auto* tensor = std::get_if<at::Tensor>(&value)) value = tensor->clone();
  }
  return copy;
}

void save_state(const State& state, const std::string& path) {
  SafeTensors file;
  for (const auto& [name, value] : state.values()) {
    if (const auto* tensor = std::get_if<at::Tensor>(&value)) {
      file.tensors[name] = *tensor;
    } else if (const auto* integer = std::get_if<int64_t>(&value)) {
      file.metadata[name] = fmt::format("i{}", *integer);
    } else if (const auto* number = std::get_if<double>(&value)) {
      file.metadata[name] = fmt::format("d{:a}", *number);  // hexadecimal, hence exact
    } else {
      file.metadata[name] = "s" + std::get<std::string>(value);
    }
  }
  write_safetensors(file, path);
}

State load_state(const std::string& path) {
  const SafeTensors file = read_safetensors(path);
  State state;
  for (const auto& [name, tensor] : file.tensors) state.set(name, tensor);
  for (const auto& [name, text] : file.metadata) {
    require(!text.empty(), fmt::format("{}: the entry \"{}\" is empty.", path, name));
    const std::string value = text.substr(1);
    char* end = nullptr;
    switch (text[0]) {
      case 'i': state.set(name, static_cast<int64_t>(std::strtoll(value.c_str(), &end, 10))); break;
      case 'd': state.set(name, std::strtod(value.c_str(), &end)); break;
      case 's': state.set(name, value); continue;
      default: throw Error(fmt::format("{}: the entry \"{}\" is of no known type.", path, name));
    }
    require(end == value.c_str() + value.size() && !value.empty(), fmt::format("{}: the entry \"{}\" is no number.", path, name));
  }
  return state;
}

}  // namespace bilevel
