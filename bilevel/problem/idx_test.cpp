#include "bilevel/problem/idx.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/problem/gzip.h"

namespace bilevel::idx_test {
namespace {

using testing::HasSubstr;

// Written by Python's struct and gzip.
std::string file(const std::string& name) { return BILEVEL_SOURCE_DIR "/tests/fuzz/corpus/idx/" + name; }

std::string error_of(const std::string& name) {
  try {
    read_idx(file(name));
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

void expect_values(const std::string& name, const at::Tensor& expected) {
  const at::Tensor tensor = read_idx(file(name));
  EXPECT_EQ(tensor.scalar_type(), expected.scalar_type()) << name;
  EXPECT_TRUE(tensor.sizes() == expected.sizes() && at::equal(tensor, expected)) << name << ": " << tensor;
}

TEST(Idx, ReadsPlainAndCompressedFilesOfEveryType) {
  const at::Tensor images = at::arange(12, at::kByte).view({3, 2, 2});
  expect_values("images", images);
  expect_values("images.gz", images);
  expect_values("two_members.gz", images);
  expect_values("i1", at::tensor(std::vector<int64_t>{-3, 4}, at::TensorOptions(at::kChar)));
  expect_values("i2", at::tensor(std::vector<int64_t>{-300, 4}, at::TensorOptions(at::kShort)));
  expect_values("i4", at::tensor(std::vector<int64_t>{-70000, 4}, at::TensorOptions(at::kInt)));
  expect_values("f4", at::tensor(std::vector<double>{0.5, -2}, at::TensorOptions(at::kFloat)));
  expect_values("f8", at::tensor(std::vector<double>{0.1, -2e300}, at::TensorOptions(at::kDouble)).view({2, 1}));
}

TEST(Idx, SaysWhatIsWrongWithAFile) {
  EXPECT_THAT(error_of("truncated.gz"), HasSubstr("cut off"));
  EXPECT_THAT(error_of("garbage.gz"), HasSubstr("4 bytes follow the end of the gzip data"));
  EXPECT_THAT(error_of("short"), HasSubstr("cut off"));
  EXPECT_THAT(error_of("long"), HasSubstr("1 bytes follow"));
  EXPECT_THAT(error_of("magic"), HasSubstr("0x00001003"));
  EXPECT_THAT(error_of("zero"), HasSubstr("no samples"));
  EXPECT_THAT(error_of("huge"), HasSubstr("cut off"));
  EXPECT_THAT(error_of("there is none"), HasSubstr("No such file"));
}

TEST(Idx, RefusesEveryCutOffFile) {
  for (const std::string name : {"images", "images.gz"}) {
    const std::string whole = read_file(file(name));
    for (size_t size = 0; size < whole.size(); ++size)
      EXPECT_THROW(parse_idx(whole.substr(0, size), "cut"), Error) << name << size;
  }
}

TEST(Gzip, RefusesADamagedFile) {
  std::string bytes = read_file(file("images.gz"));
  bytes[bytes.size() - 6] ^= 1;  // in the check sum
  EXPECT_THROW(gunzip(bytes, "damaged"), Error);
}

}  // namespace
}  // namespace bilevel::idx_test
