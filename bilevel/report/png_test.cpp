#include "bilevel/report/png.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

uint32_t big_endian(const std::string& bytes, size_t at) {
  uint32_t value = 0;
  for (size_t k = 0; k < 4; ++k) value = value << 8 | static_cast<unsigned char>(bytes.at(at + k));
  return value;
}

/// Reads a file of ours back, as the standard (ISO 15948) describes it: [H, W, channels].
at::Tensor decode(const std::string& png) {
  EXPECT_EQ(png.substr(0, 8), "\x89PNG\r\n\x1a\n");
  std::string header, packed, last;
  for (size_t at = 8; at < png.size();) {
    const uint32_t length = big_endian(png, at);
    last = png.substr(at + 4, 4);
    const std::string body = png.substr(at + 4, 4 + length);
    EXPECT_EQ(big_endian(png, at + 8 + length),
              crc32(0, reinterpret_cast<const Bytef*>(body.data()), static_cast<uInt>(body.size())))
        << last;
    if (last == "IHDR") header = body.substr(4);
    if (last == "IDAT") packed += body.substr(4);
    at += 12 + length;
  }
  EXPECT_EQ(last, "IEND");
  EXPECT_EQ(header.size(), 13u);
  EXPECT_EQ(header[8], 8);
  const int64_t width = big_endian(header, 0), height = big_endian(header, 4), channels = header[9] == 2 ? 3 : 1;
  std::string rows(static_cast<size_t>(height * (1 + width * channels)), '\0');
  uLongf size = rows.size();
  EXPECT_EQ(
      uncompress(reinterpret_cast<Bytef*>(rows.data()), &size, reinterpret_cast<const Bytef*>(packed.data()), packed.size()),
      Z_OK);
  EXPECT_EQ(size, rows.size());
  const at::Tensor all = at::from_blob(rows.data(), {height, 1 + width * channels}, at::kByte).clone();
  EXPECT_TRUE(all.select(1, 0).eq(0).all().item<bool>());  // the filter of each row
  return all.narrow(1, 1, width * channels).reshape({height, width, channels});
}

TEST(Png, GreyBytesComeBackAsTheyWere) {
  const at::Tensor image = at::arange(5 * 7).mul(7).to(at::kByte).reshape({5, 7});
  EXPECT_TRUE(at::equal(decode(encode_png(image)).squeeze(2), image));
  EXPECT_TRUE(at::equal(decode(encode_png(image.unsqueeze(0))).squeeze(2), image));
  EXPECT_TRUE(at::equal(decode(encode_png(image.t())).squeeze(2), image.t()));  // not contiguous
}

TEST(Png, ColoursAreInterleaved) {
  const at::Tensor image = at::arange(3 * 4 * 6).to(at::kByte).reshape({3, 4, 6});
  EXPECT_TRUE(at::equal(decode(encode_png(image)), image.permute({1, 2, 0})));
}

TEST(Png, FloatsAreClampedAndRounded) {
  for (const auto type : {at::kFloat, at::kDouble}) {
    const at::Tensor image = at::tensor({-1.0, 0.0, 0.5, 1.0, 7.0, NAN}, at::kDouble).to(type).reshape({1, 6});
    EXPECT_TRUE(at::equal(decode(encode_png(image)).flatten(), at::tensor({0, 0, 128, 255, 255, 0}, at::kByte)));
  }
}

TEST(Png, RefusesWhatIsNoPicture) {
  EXPECT_THROW(encode_png(at::zeros({4})), Error);
  EXPECT_THROW(encode_png(at::zeros({2, 4, 4})), Error);
  EXPECT_THROW(encode_png(at::zeros({0, 4})), Error);
  EXPECT_THROW(encode_png(at::zeros({4, 4}, at::kLong)), Error);
}

TEST(Base64, IsThatOfRfc4648) {
  const std::pair<const char*, const char*> vectors[] = {{"", ""},
                                                         {"f", "Zg=="},
                                                         {"fo", "Zm8="},
                                                         {"foo", "Zm9v"},
                                                         {"foob", "Zm9vYg=="},
                                                         {"fooba", "Zm9vYmE="},
                                                         {"foobar", "Zm9vYmFy"}};
  for (const auto& [plain, encoded] : vectors) EXPECT_EQ(base64(plain), encoded);
  EXPECT_EQ(base64("\xff\xfe\x00x"), "//4=");  // a C string ends at its zero
  EXPECT_EQ(base64(std::string("\xff\xfe\x00", 3)), "//4A");
}

}  // namespace
}  // namespace bilevel
