#pragma once
#include <map>
#include <string>

#include <ATen/core/Tensor.h>

namespace bilevel {

/// The content of a safetensors file: named tensors and a flat map of strings. The format holds data only, no code.
struct SafeTensors {
  std::map<std::string, at::Tensor> tensors;
  std::map<std::string, std::string> metadata;
};

/// Throws Error, naming the file and what is wrong with it.
SafeTensors read_safetensors(const std::string& path);
SafeTensors parse_safetensors(std::string_view bytes, const std::string& name);

/// Writes beside `path` and renames, so that a reader sees the old file or the new one. Throws Error where it cannot.
void write_safetensors(const SafeTensors& content, const std::string& path);

}  // namespace bilevel
