// http://yann.lecun.com/exdb/mnist: two zero bytes, one of type, one of dimensions; the extents (u32), then the data, all
// big-endian.
#include "bilevel/problem/idx.h"

#include <algorithm>
#include <cstring>

#include <ATen/ATen.h>
#include <fmt/format.h>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/problem/gzip.h"

namespace bilevel {
namespace {

struct IdxType {
  unsigned char code;
  at::ScalarType type;
};
constexpr IdxType kIdxTypes[] = {{0x08, at::kByte}, {0x09, at::kChar},  {0x0b, at::kShort},
                                 {0x0c, at::kInt},  {0x0d, at::kFloat}, {0x0e, at::kDouble}};

uint32_t big_endian(std::string_view bytes) {
  uint32_t value = 0;
  for (const char byte : bytes.substr(0, 4)) value = value << 8 | static_cast<unsigned char>(byte);
  return value;
}

}  // namespace

at::Tensor parse_idx(std::string_view bytes, const std::string& name) {
  std::string inflated;
  if (is_gzip(bytes)) {
    inflated = gunzip(bytes, name);
    bytes = inflated;
  }
  const auto check = [&](bool condition, std::string_view reason) {
    if (!condition) throw Error(fmt::format("{} is not a valid IDX file: {}.", name, reason));
  };
  check(bytes.size() >= 4, "it is shorter than its header");
  const uint32_t magic = big_endian(bytes);
  const IdxType* dtype = nullptr;
  for (const IdxType& candidate : kIdxTypes) {
    if (magic >> 8 == candidate.code) dtype = &candidate;
  }
  check(dtype != nullptr,
        fmt::format("it begins with {:#010x}, and an IDX file with 0x0000 and a type (such as 0x00000803 for images)", magic));
  const size_t dimensions = magic & 0xff;
  check(bytes.size() >= 4 + 4 * dimensions, "it is shorter than its header");
  const std::string_view data = bytes.substr(4 + 4 * dimensions);
  const size_t item = c10::elementSize(dtype->type);

  std::vector<int64_t> shape;
  int64_t count = 1;
  for (size_t i = 0; i < dimensions; ++i) {
    const uint32_t extent = big_endian(bytes.substr(4 + 4 * i));
    check(extent > 0, fmt::format("dimension {} of it is zero, so it has no samples", i));
    check(static_cast<uint64_t>(count) <= data.size() / extent, "it is cut off, or its shape is wrong");
    count *= extent;
    shape.push_back(extent);
  }
  const size_t expected = static_cast<size_t>(count) * item;
  check(data.size() >= expected,
        fmt::format("it is cut off: its shape needs {} bytes of data, and it has {}", expected, data.size()));
  check(data.size() == expected, fmt::format("{} bytes follow its data", data.size() - expected));

  at::Tensor tensor = at::empty(shape, at::TensorOptions(dtype->type));
  auto* out = static_cast<char*>(tensor.data_ptr());
  std::memcpy(out, data.data(), expected);
  if (item > 1) {
    for (size_t i = 0; i < expected; i += item) std::reverse(out + i, out + i + item);
  }
  return tensor;
}

at::Tensor read_idx(const std::string& path) { return parse_idx(read_file(path), path); }

}  // namespace bilevel
