#include "bilevel/report/report.h"

#include <gtest/gtest.h>

#include <cmath>

namespace bilevel {
namespace {

TEST(Format, NumbersAsPeopleReadThem) {
  EXPECT_EQ(format_number(0.123456), "0.1235");
  EXPECT_EQ(format_number(NAN), "—");
  EXPECT_EQ(format_fixed(81.449, 1), "81.4");
  EXPECT_EQ(format_count(12000), "12\u202f000");
  EXPECT_EQ(format_count(-1234567), "−1\u202f234\u202f567");
  EXPECT_EQ(format_count(999), "999");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(3.5 * 1024 * 1024), "3.5 MiB");
  EXPECT_EQ(format_seconds(0.25), "250 ms");
  EXPECT_EQ(format_seconds(59.96), "60.0 s");
  EXPECT_EQ(format_seconds(245), "4 min 05 s");
  EXPECT_EQ(format_seconds(7260), "2 h 01 min");
}

TEST(Cell, TheSpreadDecidesOnTheDecimals) {
  EXPECT_EQ(Cell::measured(0.81234, 0.0051).text, "0.8123");
  EXPECT_EQ(Cell::measured(0.81234, 0.0051).error, "0.0051");
  EXPECT_EQ(Cell::measured(1.962, 0.13).text, "1.96");
  EXPECT_EQ(Cell::measured(1.962, NAN).error, "");
  EXPECT_EQ(Cell::measured(1.962, 0).text, "1.962");
  EXPECT_EQ(Cell::measured(12345, 250).text, "1.234e+04");
}

TEST(TableOf, CurvesOfDifferentPointsShareTheirRows) {
  const Table table =
      table_of(LineChart{.title = "", .x_label = "t", .y_label = "", .series = {{"a", {2, 0}, {20, 10}}, {"b", {1, 2}, {1, 2}}}});
  ASSERT_EQ(table.rows.size(), 3u);
  const std::vector<std::vector<std::string>> expected = {{"0", "10", "—"}, {"1", "—", "1"}, {"2", "20", "2"}};
  for (size_t i = 0; i < 3; ++i) {
    for (size_t j = 0; j < 3; ++j) EXPECT_EQ(table.rows[i].cells[j].text, expected[i][j]);
  }
}

TEST(TableOf, ALongCurveIsThinnedAndKeepsItsLastPoint) {
  LineChart chart{.title = "", .x_label = "t", .y_label = "", .series = {{"a", {}, {}}}};
  for (int t = 0; t < 1234; ++t) chart.series[0].x.push_back(t), chart.series[0].y.push_back(2 * t);
  const Table table = table_of(chart, 100);
  EXPECT_LE(table.rows.size(), 101u);
  EXPECT_EQ(table.rows.back().cells[0].text, "1233");
  EXPECT_EQ(table.rows.back().cells[1].text, "2466");
  EXPECT_FALSE(table.note.empty());
}

TEST(TableOf, AnEmptyChartIsAnEmptyTable) {
  EXPECT_TRUE(table_of(LineChart{}).rows.empty());
  EXPECT_TRUE(table_of(BarChart{}).rows.empty());
}

}  // namespace
}  // namespace bilevel
