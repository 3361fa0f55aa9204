#include "bilevel/core/bytes.h"

#include <gtest/gtest.h>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

TEST(Bytes, AreReadWithTheirUnits) {
  EXPECT_EQ(parse_bytes("4096"), 4096);
  EXPECT_EQ(parse_bytes("200MB"), 200'000'000);
  EXPECT_EQ(parse_bytes("1.5 GiB"), 1'610'612'736);
  EXPECT_EQ(parse_bytes("2 kb"), 2000);
  EXPECT_EQ(parse_bytes("1KiB"), 1024);
  for (const char* wrong : {"", "MB", "-1", "12 apples", "1e400", "nan", "9e30TB"})
    EXPECT_THROW(parse_bytes(wrong), Error) << wrong;
}

TEST(Bytes, AreWrittenForPeople) {
  EXPECT_EQ(bytes_text(12), "12 B");
  EXPECT_EQ(bytes_text(1.5e9), "1.5 GB");
  EXPECT_EQ(bytes_text(123456), "123 kB");
}

TEST(Bytes, AreReadFromAConfigurationAsANumberOrAText) {
  Section section = Config::parse("a = \"3 MB\"\nb = 17\nc = \"much\"\nd = -4", "f.toml").root();
  int64_t a = 0, b = 0, c = 5, d = 0, e = 6;
  read_bytes(section, "a", a);
  read_bytes(section, "b", b);
  read_bytes(section, "e", e);
  EXPECT_EQ(a, 3'000'000);
  EXPECT_EQ(b, 17);
  EXPECT_EQ(e, 6);
  EXPECT_THROW(read_bytes(section, "c", c), Error);
  EXPECT_THROW(read_bytes(section, "d", d), Error);
}

}  // namespace
}  // namespace bilevel
