#include "bilevel/problem/csv.h"

#include <filesystem>
#include <functional>

#include <unistd.h>

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"

namespace bilevel::csv_test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string error_of(std::string_view text) {
  try {
    parse_csv(text, "t.csv");
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Csv, ReadsQuotesLineEndsAndAByteOrderMark) {
  const CsvTable table = parse_csv("\xef\xbb\xbfname,\"a \"\"b\"\", c\"\r\n\"two\r\nlines\", 1 \r\n\r\n x y ,\"\"", "t.csv");
  EXPECT_THAT(table.columns, ElementsAre("name", "a \"b\", c"));
  EXPECT_THAT(table.rows, ElementsAre(ElementsAre("two\r\nlines", "1"), ElementsAre("x y", "")));
  EXPECT_THAT(table.lines, ElementsAre(2, 5));
  EXPECT_EQ(table.place(1), "t.csv:5");
}

TEST(Csv, NamesTheLineOfARaggedRow) {
  EXPECT_THAT(error_of("a,b\n1,2\n\"x\ny\",4\n5\n"), HasSubstr("t.csv:5: the row has 1 fields"));
  EXPECT_THAT(error_of("a,b\n1,2,3\n"), HasSubstr("t.csv:2"));
}

TEST(Csv, SaysWhatIsWrongWithAFile) {
  EXPECT_THAT(error_of(""), HasSubstr("empty"));
  EXPECT_THAT(error_of("\xef\xbb\xbf\n\n"), HasSubstr("empty"));
  EXPECT_THAT(error_of("a,b\n"), HasSubstr("no rows"));
  EXPECT_THAT(error_of("a,a\n1,2\n"), HasSubstr("two columns have the name \"a\""));
  EXPECT_THAT(error_of(",a\n1,2\n"), HasSubstr("column 1 has no name"));
  EXPECT_THAT(error_of("a,b\n1,2\n1,\"2\n3,4\n"), HasSubstr("t.csv:3: the quoted field"));
  EXPECT_THAT(error_of("a,b\n1,2\n1,x\"2\n"), HasSubstr("t.csv:3: a quote"));
  EXPECT_THAT(error_of("a,b\n1,gr\xfc\xdf\n"), HasSubstr("t.csv:2: the text is not UTF-8"));
  EXPECT_THROW(read_csv("/there is none.csv"), Error);
}

TEST(Csv, SuggestsTheNearestColumn) {
  const CsvTable table = parse_csv("label,source\n1,2\n", "t.csv");
  EXPECT_EQ(table.index("source"), 1u);
  try {
    table.index("lable");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("\"label\""));
  }
}

TEST(Csv, WritesWhatItReadsBack) {
  const std::string path = fmt::format("{}bilevel_csv_{}.csv", testing::TempDir(), getpid());
  const CsvTable table{"t", {"a", "b,c"}, {{"plain", "qu\"ote"}, {" spaced ", "two\nlines"}, {"", "größe\r"}}, {}, {}};
  write_csv(table, path);
  const CsvTable again = read_csv(path);
  EXPECT_EQ(again.columns, table.columns);
  EXPECT_EQ(again.rows, table.rows);
  const CsvTable one{"t", {"a"}, {{""}, {"x"}}, {}, {}};  // an empty field alone must not become a blank line
  write_csv(one, path);
  EXPECT_EQ(read_csv(path).rows, one.rows);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace bilevel::csv_test
