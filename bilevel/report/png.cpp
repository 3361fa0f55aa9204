#include "bilevel/report/png.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <zlib.h>

#include <array>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

std::string big_endian(uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
          static_cast<char>(value)};
}

// A chunk of the format: length, kind, data, and the checksum of kind and data.
std::string chunk(const std::string& kind, const std::string& data) {
  const std::string body = kind + data;
  const uLong checksum = crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size()));
  return big_endian(static_cast<uint32_t>(data.size())) + body + big_endian(static_cast<uint32_t>(checksum));
}

std::string deflate_all(const std::string& bytes) {
  uLongf size = compressBound(bytes.size());
  std::string packed(size, '\0');
  const int code = compress2(reinterpret_cast<Bytef*>(packed.data()), &size, reinterpret_cast<const Bytef*>(bytes.data()),
                             bytes.size(), Z_BEST_COMPRESSION);
  require(code == Z_OK, fmt::format("encode_png: zlib failed with code {}", code));
  packed.resize(size);
  return packed;
}

}  // namespace

std::string encode_png(const at::Tensor& image) {
  const at::Tensor planes = image.dim() == 2 ? image.unsqueeze(0) : image;
  require(planes.dim() == 3 && (planes.size(0) == 1 || planes.size(0) == 3) && planes.numel() > 0,
          fmt::format("encode_png: image has shape [{}], and [H, W], [1, H, W] or [3, H, W] is right",
                      fmt::join(image.sizes().begin(), image.sizes().end(), ", ")));
  require(planes.scalar_type() == at::kByte || at::isFloatingType(planes.scalar_type()),
          fmt::format("encode_png: image is of type {}, and uint8 or floats in 0…1 are right", toString(planes.scalar_type())));
  const at::Tensor bytes =
      planes.scalar_type() == at::kByte ? planes : planes.nan_to_num(0).clamp(0, 1).mul(255).round().to(at::kByte);
  const at::Tensor pixels = bytes.permute({1, 2, 0}).to(at::kCPU).contiguous();  // [H, W, channels]

  const auto height = static_cast<uint32_t>(pixels.size(0)), width = static_cast<uint32_t>(pixels.size(1));
  const size_t row = static_cast<size_t>(width) * static_cast<size_t>(pixels.size(2));
  std::string rows;
  for (uint32_t i = 0; i < height; ++i) {
    rows += '\0';  // no filter
    rows.append(reinterpret_cast<const char*>(pixels.const_data_ptr<uint8_t>()) + i * row, row);
  }
  const char color = pixels.size(2) == 1 ? 0 : 2;
  const std::string header = big_endian(width) + big_endian(height) + std::string{8, color, 0, 0, 0};
  return "\x89PNG\r\n\x1a\n" + chunk("IHDR", header) + chunk("IDAT", deflate_all(rows)) + chunk("IEND", "");
}

std::string base64(std::string_view bytes) {
  constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    for (size_t k = 0; k < 3; ++k) group = group << 8 | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0u);
    for (size_t k = 0; k < 4; ++k) text += i + k > bytes.size() ? '=' : kDigits[group >> (18 - 6 * k) & 63];
  }
  return text;
}

}  // namespace bilevel
