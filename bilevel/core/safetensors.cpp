// https://huggingface.co/docs/safetensors: u64 little-endian length of the header, a JSON header, then the tensors' bytes.
#include "bilevel/core/safetensors.h"

#include <algorithm>
#include <cstring>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"

namespace bilevel {
namespace {

struct Dtype {
  const char* name;
  at::ScalarType type;
};
constexpr Dtype kDtypes[] = {{"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf},  {"BF16", at::kBFloat16},
                             {"I64", at::kLong},   {"I32", at::kInt},   {"I16", at::kShort}, {"I8", at::kChar},
                             {"U8", at::kByte},    {"BOOL", at::kBool}};

const char* name_of(at::ScalarType type) {
  for (const Dtype& dtype : kDtypes) {
    if (dtype.type == type) return dtype.name;
  }
  throw Error(fmt::format("write_safetensors: the dtype {} has no safetensors name.", c10::toString(type)));
}

}  // namespace

SafeTensors parse_safetensors(std::string_view bytes, const std::string& name) {
  const auto check = [&](bool condition, std::string_view reason) {
    if (!condition) throw Error(fmt::format("{} is not a valid safetensors file: {}.", name, reason));
  };
  check(bytes.size() >= 8, "it is shorter than its header");
  uint64_t header_size = 0;
  std::memcpy(&header_size, bytes.data(), 8);
  check(header_size <= bytes.size() - 8, "it is shorter than its header");
  const auto header = nlohmann::json::parse(bytes.begin() + 8, bytes.begin() + 8 + static_cast<std::ptrdiff_t>(header_size),
                                            nullptr, /*allow_exceptions=*/false);
  check(header.is_object(), "its header is not a JSON object");
  const std::string_view data = bytes.substr(8 + header_size);

  SafeTensors content;
  for (const auto& [key, entry] : header.items()) {
    check(entry.is_object(), fmt::format("the entry \"{}\" is not an object", key));
    if (key == "__metadata__") {
      for (const auto& [k, v] : entry.items()) {
        check(v.is_string(), fmt::format("the metadata \"{}\" is not a string", k));
        content.metadata[k] = v.get<std::string>();
      }
      continue;
    }
    check(entry.contains("dtype") && entry["dtype"].is_string() && entry.contains("shape") && entry["shape"].is_array() &&
              entry.contains("data_offsets") && entry["data_offsets"].is_array() && entry["data_offsets"].size() == 2,
          fmt::format("the entry \"{}\" lacks dtype, shape or data_offsets", key));
    std::vector<int64_t> shape;
    uint64_t count = 1;
    uint64_t bound = 1;  // the same, but for the zeros: the strides may not overflow either
    for (const auto& extent : entry["shape"]) {
      check(extent.is_number_unsigned(), fmt::format("\"{}\" has a bad shape", key));
      const auto value = extent.get<uint64_t>();
      check(value <= (uint64_t{1} << 58) / bound, fmt::format("the shape of \"{}\" is too large", key));
      bound *= std::max<uint64_t>(value, 1);
      count *= value;
      shape.push_back(static_cast<int64_t>(value));
    }
    for (const auto& offset : entry["data_offsets"])
      check(offset.is_number_unsigned(), fmt::format("\"{}\" has bad offsets", key));
    const auto begin = entry["data_offsets"][0].get<uint64_t>();
    const auto end = entry["data_offsets"][1].get<uint64_t>();
    check(begin <= end && end <= data.size(), fmt::format("the data of \"{}\" lies outside the file", key));
    const auto dtype_name = entry["dtype"].get<std::string>();
    const Dtype* dtype = nullptr;
    for (const Dtype& candidate : kDtypes) {
      if (dtype_name == candidate.name) dtype = &candidate;
    }
    check(dtype != nullptr, fmt::format("\"{}\" has the unknown dtype {}", key, dtype_name));
    check(end - begin == count * c10::elementSize(dtype->type),
          fmt::format("\"{}\" has {} bytes, not what its shape needs", key, end - begin));
    at::Tensor tensor = at::empty(shape, at::TensorOptions(dtype->type));
    if (end > begin) std::memcpy(tensor.data_ptr(), data.data() + begin, end - begin);
    content.tensors[key] = tensor;
  }
  return content;
}

SafeTensors read_safetensors(const std::string& path) { return parse_safetensors(read_file(path), path); }

void write_safetensors(const SafeTensors& content, const std::string& path) {
  nlohmann::json header = nlohmann::json::object();
  if (!content.metadata.empty()) header["__metadata__"] = content.metadata;
  std::vector<at::Tensor> tensors;
  uint64_t offset = 0;
  for (const auto& [name, tensor] : content.tensors) {
    tensors.push_back(tensor.detach().to(at::kCPU).contiguous());
    const uint64_t end = offset + tensors.back().nbytes();
    header[name] = {{"dtype", name_of(tensor.scalar_type())}, {"shape", tensor.sizes().vec()}, {"data_offsets", {offset, end}}};
    offset = end;
  }
  std::string text = header.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  text.resize((text.size() + 7) / 8 * 8, ' ');  // the data start on a multiple of eight bytes
  const uint64_t header_size = text.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &header_size, 8);
  bytes += text;
  bytes.reserve(bytes.size() + offset);
  for (const at::Tensor& tensor : tensors) {
    if (tensor.nbytes() > 0) bytes.append(static_cast<const char*>(tensor.data_ptr()), tensor.nbytes());
  }
  write_file(path, bytes);
}

}  // namespace bilevel
