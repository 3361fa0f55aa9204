#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <variant>

#include <ATen/core/Tensor.h>

namespace bilevel {

/// All that a run needs to go on: a flat map of names to tensors, numbers and strings. A State saved and loaded again is equal
/// bit for bit.
class State {
 public:
  using Value = std::variant<at::Tensor, int64_t, double, std::string>;

  void set(const std::string& name, Value value) { values_[name] = std::move(value); }
  bool has(const std::string& name) const { return values_.contains(name); }
  void erase(const std::string& name) { values_.erase(name); }

  // Each throws Error where the entry is missing or of another type.
  const at::Tensor& tensor(const std::string& name) const;
  int64_t integer(const std::string& name) const;
  double number(const std::string& name) const;
  const std::string& text(const std::string& name) const;

  const std::map<std::string, Value>& values() const { return values_; }

  /// A copy that later in-place changes of this state's tensors do not reach.
  State clone() const;

 private:
  template <class T>
  const T& get(const std::string& name, const char* type) const;
  std::map<std::string, Value> values_;
};

/// Writes `state` as a safetensors file (tensors as tensors, the rest in its metadata); `load_state` reads it back.
void save_state(const State& state, const std::string& path);
State load_state(const std::string& path);

}  // namespace bilevel
