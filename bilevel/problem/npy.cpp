// https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html: "\x93NUMPY", two bytes of version, the length of the
// header (u16, from version 2 on u32), the header (the literal of a Python dictionary), and the data.
#include "bilevel/problem/npy.h"

#include <bit>
#include <charconv>
#include <cstring>
#include <optional>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"

namespace bilevel {
namespace {

static_assert(std::endian::native == std::endian::little, "the data are copied as they lie in the file");

constexpr std::string_view kMagic = "\x93NUMPY";

struct NpyType {
  std::string_view code;
  at::ScalarType stored;
};
constexpr NpyType kNpyTypes[] = {{"b1", at::kByte}, {"i1", at::kChar}, {"i2", at::kShort},  {"i4", at::kInt},
                                 {"i8", at::kLong}, {"u1", at::kByte}, {"u2", at::kUInt16}, {"u4", at::kUInt32},
                                 {"u8", at::kLong}, {"f2", at::kHalf}, {"f4", at::kFloat},  {"f8", at::kDouble}};
constexpr size_t kMaxDimensions = 64;  // NumPy's own limit

struct Header {
  std::string descr;
  bool fortran_order = false;
  std::vector<int64_t> shape;
};

/// Reads {'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), }.
class HeaderParser {
 public:
  HeaderParser(std::string_view text, const std::string& name) : text_(text), name_(name) {}

  Header parse() {
    std::optional<std::string> descr;
    std::optional<bool> fortran_order;
    std::optional<std::vector<int64_t>> shape;
    expect('{');
    while (!accept('}')) {
      const std::string key = quoted();
      expect(':');
      if (key == "descr") {
        if (peek() == '[') fail("it holds a structured array; save its columns as separate plain arrays");
        descr = quoted();
      } else if (key == "fortran_order") {
        fortran_order = boolean();
      } else if (key == "shape") {
        shape = tuple();
      } else {
        fail(fmt::format("its header has the unknown key {:?}", key));
      }
      if (!accept(',') && peek() != '}') fail("its header is no dictionary");
    }
    if (!descr || !fortran_order || !shape) fail("its header lacks descr, fortran_order or shape");
    return {*descr, *fortran_order, *shape};
  }

  [[noreturn]] void fail(std::string_view reason) const {
    throw Error(fmt::format("{} is not an array that can be read: {}.", name_, reason));
  }

 private:
  char peek() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t')) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool accept(char c) {
    if (peek() != c || at_ == text_.size()) return false;
    ++at_;
    return true;
  }
  void expect(char c) {
    if (!accept(c)) fail(fmt::format("its header should have \"{}\" at byte {}", c, at_));
  }
  std::string quoted() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') fail(fmt::format("its header should have a string at byte {}", at_));
    const size_t end = text_.find(quote, at_ + 1);
    if (end == std::string_view::npos) fail("a string of its header does not end");
    std::string value(text_.substr(at_ + 1, end - at_ - 1));
    at_ = end + 1;
    return value;
  }
  bool boolean() {
    peek();
    for (const std::string_view word : {"True", "False"}) {
      if (text_.substr(at_).starts_with(word)) {
        at_ += word.size();
        return word == "True";
      }
    }
    fail("fortran_order is neither True nor False");
  }
  std::vector<int64_t> tuple() {
    std::vector<int64_t> values;
    expect('(');
    while (!accept(')')) {
      int64_t value = -1;
      peek();
      const auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), value);
      if (error != std::errc() || value < 0) fail("its shape is no tuple of sizes");
      at_ = static_cast<size_t>(end - text_.data());
      values.push_back(value);
      if (values.size() > kMaxDimensions) fail(fmt::format("it has more than {} dimensions", kMaxDimensions));
      accept('L');  // Python 2 wrote long integers so
      if (!accept(',') && peek() != ')') fail("its shape is no tuple of sizes");
    }
    return values;
  }

  std::string_view text_;
  const std::string& name_;
  size_t at_ = 0;
};

const NpyType& dtype_of(const HeaderParser& parser, const std::string& descr) {
  const char order = descr.empty() ? '\0' : descr[0];
  const std::string_view code = std::string_view(descr).substr(descr.empty() ? 0 : 1);
  if (code.starts_with('O')) {
    parser.fail(
        "object arrays hold Python objects, and reading them would run code; save it as numbers, for example "
        "np.save(path, array.astype(\"float64\"))");
  }
  if (code.starts_with('U') || code.starts_with('S')) {
    parser.fail("it holds text; number the texts (np.unique(array, return_inverse=True)), or use a .csv file");
  }
  for (const NpyType& dtype : kNpyTypes) {
    if (code != dtype.code) continue;
    if (order == '>') parser.fail("its numbers are big-endian; save it as array.astype(array.dtype.newbyteorder(\"<\"))");
    if (order == '<' || order == '|' || order == '=') return dtype;
  }
  parser.fail(fmt::format("its dtype {:?} is none of bool, int, uint, float16, float32 and float64", descr));
}

/// Elements of `shape`, which may not overflow together with the element's size, even where one extent is zero: strides would.
int64_t count_elements(const HeaderParser& parser, const std::vector<int64_t>& shape) {
  int64_t count = 1, bound = 1;
  for (const int64_t extent : shape) {
    if (__builtin_mul_overflow(bound, std::max<int64_t>(extent, 1), &bound) || bound > (int64_t{1} << 58)) {
      parser.fail(fmt::format("its shape ({}) is too large", fmt::join(shape, ", ")));
    }
    count *= extent;
  }
  return count;
}

}  // namespace

at::Tensor parse_npy(std::string_view bytes, const std::string& name) {
  const HeaderParser outside({}, name);
  if (!bytes.starts_with(kMagic)) outside.fail("it does not begin as a .npy file does");
  if (bytes.size() < 10) outside.fail("it is shorter than its header");
  const auto version = static_cast<unsigned char>(bytes[6]);
  if (version < 1 || version > 3) outside.fail(fmt::format("its format version {} is none of 1, 2 and 3", version));
  const size_t length_bytes = version == 1 ? 2 : 4;
  if (bytes.size() < 8 + length_bytes) outside.fail("it is shorter than its header");
  uint32_t header_length = 0;
  std::memcpy(&header_length, bytes.data() + 8, length_bytes);
  const std::string_view rest = bytes.substr(8 + length_bytes);
  if (rest.size() < header_length) outside.fail("it is shorter than its header");

  HeaderParser parser(rest.substr(0, header_length), name);
  const Header header = parser.parse();
  const std::string_view data = rest.substr(header_length);
  const NpyType& dtype = dtype_of(parser, header.descr);
  const int64_t count = count_elements(parser, header.shape);
  const auto expected = static_cast<size_t>(count) * c10::elementSize(dtype.stored);
  if (data.size() != expected) {
    parser.fail(fmt::format("its shape ({}) needs {} bytes of data, and it has {}{}", fmt::join(header.shape, ", "), expected,
                            data.size(), data.size() < expected ? ": it is cut off" : ""));
  }

  std::vector<int64_t> stored_shape = header.shape;
  if (header.fortran_order) std::reverse(stored_shape.begin(), stored_shape.end());
  at::Tensor tensor = at::empty(stored_shape, at::TensorOptions(dtype.stored));
  if (expected > 0) std::memcpy(tensor.data_ptr(), data.data(), expected);
  if (dtype.code == "b1") tensor = tensor.ne(0);  // any other byte in a bool is undefined behaviour
  if (dtype.stored == at::kUInt16 || dtype.stored == at::kUInt32) tensor = tensor.to(at::kLong);
  if (dtype.code == "u8" && count > 0 && tensor.min().item<int64_t>() < 0)
    parser.fail("a value of it is larger than int64 can hold");
  if (header.fortran_order && tensor.dim() > 1) {
    std::vector<int64_t> reversed(static_cast<size_t>(tensor.dim()));
    for (size_t i = 0; i < reversed.size(); ++i) reversed[i] = static_cast<int64_t>(reversed.size() - 1 - i);
    tensor = tensor.permute(reversed).contiguous();
  }
  return tensor;
}

at::Tensor read_npy(const std::string& path) { return parse_npy(read_file(path), path); }

void write_npy(const at::Tensor& tensor, const std::string& path) {
  const at::ScalarType type = tensor.scalar_type();
  std::string descr;
  if (type == at::kBool) descr = "|b1";
  for (const NpyType& dtype : kNpyTypes) {
    if (descr.empty() && dtype.code != "b1" && dtype.stored == type) {
      descr = (c10::elementSize(type) == 1 ? "|" : "<") + std::string(dtype.code);
    }
  }
  require(!descr.empty(), fmt::format("write_npy({}): the dtype {} has no NumPy name.", path, c10::toString(type)));
  const auto shape = tensor.sizes();
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}{}), }}", descr, fmt::join(shape, ", "),
                                   shape.size() == 1 ? "," : "");
  header.resize((10 + header.size() + 1 + 63) / 64 * 64 - 10, ' ');  // the data start on a multiple of 64 bytes
  header.back() = '\n';
  require(header.size() <= 0xffff, fmt::format("write_npy({}): the shape is too long.", path));
  const auto length = static_cast<uint16_t>(header.size());

  const at::Tensor plain = tensor.detach().to(at::kCPU).contiguous();
  std::string bytes(kMagic);
  bytes.append({'\1', '\0', static_cast<char>(length & 0xff), static_cast<char>(length >> 8)});
  bytes += header;
  if (plain.nbytes() > 0) bytes.append(static_cast<const char*>(plain.data_ptr()), plain.nbytes());
  write_file(path, bytes);
}

}  // namespace bilevel
