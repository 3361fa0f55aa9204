#include "bilevel/problem/npy.h"

#include <filesystem>

#include <unistd.h>

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"

namespace bilevel::npy_test {
namespace {

using testing::HasSubstr;

// Written by NumPy 2: an outside truth for the reader.
std::string by_numpy(const std::string& name) { return BILEVEL_SOURCE_DIR "/tests/fuzz/corpus/npy/" + name + ".npy"; }

std::string error_of(const std::string& name) {
  try {
    read_npy(by_numpy(name));
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

void expect_values(const std::string& name, const at::Tensor& expected) {
  const at::Tensor tensor = read_npy(by_numpy(name));
  EXPECT_EQ(tensor.scalar_type(), expected.scalar_type()) << name;
  EXPECT_EQ(tensor.sizes(), expected.sizes()) << name;
  EXPECT_TRUE(tensor.sizes() == expected.sizes() && at::equal(tensor, expected)) << name << ": " << tensor;
}

template <class T>
at::Tensor values(std::vector<T> list, at::ScalarType type) {
  return at::tensor(list, at::TensorOptions(at::CppTypeToScalarType<T>::value)).to(type);
}

TEST(Npy, ReadsWhatNumPyWrites) {
  expect_values("f8", at::arange(6, at::kDouble).view({2, 3}) / 4);
  expect_values("f4_fortran", at::arange(24, at::kFloat).view({2, 3, 4}));
  expect_values("f2", values<double>({0.5, -2}, at::kHalf));
  expect_values("bool", values<int64_t>({1, 0, 1}, at::kLong).to(at::kBool));
  expect_values("u1", values<int64_t>({0, 255, 7, 8}, at::kByte).view({2, 2}));
  expect_values("u2", values<int64_t>({0, 65535}, at::kLong));
  expect_values("u4", values<int64_t>({0, 4294967295}, at::kLong));
  expect_values("u8", values<int64_t>({0, INT64_MAX}, at::kLong));
  expect_values("i1", values<int64_t>({-128, 127}, at::kChar));
  expect_values("i2", values<int64_t>({-300, 300}, at::kShort));
  expect_values("i4", values<int64_t>({-70000}, at::kInt));
  expect_values("i8_v2", values<int64_t>({-(int64_t{1} << 40), 3}, at::kLong));
  expect_values("i8_v3", values<int64_t>({-(int64_t{1} << 40), 3}, at::kLong).view({1, 2}));
  expect_values("scalar", at::scalar_tensor(2.5, at::kDouble));
  expect_values("empty", at::empty({0, 3}, at::kDouble));
}

TEST(Npy, RefusesPythonObjectsAndSaysWhatToDo) {
  EXPECT_THAT(error_of("object"), HasSubstr("object arrays hold Python objects"));
  EXPECT_THAT(error_of("object"), HasSubstr("astype"));
  EXPECT_THAT(error_of("object"), HasSubstr("object.npy"));
}

TEST(Npy, RefusesWhatItCannotRead) {
  EXPECT_THAT(error_of("big_endian"), HasSubstr("big-endian"));
  EXPECT_THAT(error_of("text"), HasSubstr("text"));
  EXPECT_THAT(error_of("complex"), HasSubstr("<c16"));
  EXPECT_THAT(error_of("structured"), HasSubstr("structured"));
  EXPECT_THAT(error_of("u8_large"), HasSubstr("larger than int64"));
  EXPECT_THAT(error_of("there is none"), HasSubstr("No such file"));
}

TEST(Npy, RefusesEveryCutOffFileAndTrailingBytes) {
  const std::string whole = read_file(by_numpy("f8"));
  for (size_t size = 0; size < whole.size(); ++size) EXPECT_THROW(parse_npy(whole.substr(0, size), "cut"), Error) << size;
  EXPECT_THROW(parse_npy(whole + "x", "long"), Error);
  EXPECT_NO_THROW(parse_npy(whole, "whole"));
}

TEST(Npy, RefusesAShapeThatOverflows) {
  const auto with_shape = [](const std::string& shape) {
    std::string header = fmt::format("{{'descr': '<f8', 'fortran_order': False, 'shape': ({}), }}\n", shape);
    return std::string("\x93NUMPY\1\0", 8) + static_cast<char>(header.size()) + '\0' + header;
  };
  EXPECT_THROW(parse_npy(with_shape("9223372036854775807, 2"), "a"), Error);
  EXPECT_THROW(parse_npy(with_shape("4294967296, 4294967296"), "b"), Error);  // the product is 0 modulo 2⁶⁴
  EXPECT_THROW(parse_npy(with_shape("0, 9223372036854775807, 9223372036854775807"), "c"), Error);
  EXPECT_THROW(parse_npy(with_shape("-1,"), "d"), Error);
  EXPECT_EQ(parse_npy(with_shape("0,"), "e").numel(), 0);
}

TEST(Npy, WritesWhatItReadsBack) {
  const std::string path = fmt::format("{}bilevel_npy_{}.npy", testing::TempDir(), getpid());
  for (const auto type : {at::kBool, at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf, at::kFloat, at::kDouble}) {
    const at::Tensor tensor = at::arange(12, at::kLong).view({3, 2, 2}).remainder(5).to(type).transpose(0, 1);
    write_npy(tensor, path);
    const at::Tensor again = read_npy(path);
    EXPECT_EQ(again.scalar_type(), type);
    EXPECT_TRUE(at::equal(again, tensor)) << c10::toString(type);
  }
  write_npy(at::scalar_tensor(1.5, at::kDouble), path);
  EXPECT_EQ(read_npy(path).dim(), 0);
  EXPECT_THROW(write_npy(at::zeros({1}, at::kComplexDouble), path), Error);
  EXPECT_EQ(read_npy(path).item<double>(), 1.5);  // a refused array leaves the file as it was
  std::filesystem::remove(path);
}

TEST(Npy, WritesTheVeryBytesOfNumPy) {
  const std::string path = fmt::format("{}bilevel_npy_bytes_{}.npy", testing::TempDir(), getpid());
  for (const std::string name : {"f8", "bool", "u1", "i2", "scalar", "empty"}) {
    write_npy(read_npy(by_numpy(name)), path);
    EXPECT_EQ(read_file(path), read_file(by_numpy(name))) << name;
  }
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace bilevel::npy_test
