#include "bilevel/report/terminal.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <sstream>

namespace bilevel {
namespace {

using testing::HasSubstr;
using testing::Not;

Report report_of(Block block) { return Report{.title = "title", .subtitle = "", .sections = {{"section", {std::move(block)}}}}; }

size_t widest_line(const std::string& text) {
  size_t widest = 0;
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) {
    size_t columns = 0;
    for (const char c : line) columns += (static_cast<unsigned char>(c) & 0xc0) != 0x80;
    widest = std::max(widest, columns);
  }
  return widest;
}

TEST(Terminal, AlignsNumbersToTheRightAndMarksTheRow) {
  const std::string text =
      render_terminal(report_of(Table{.title = "",
                                      .columns = {{"row", false}, {"accuracy", true}},
                                      .rows = {{{"all data", Cell::mean(73.2, 0.3, 1)}}, {{"λ", "8"}, true}}}));
  EXPECT_THAT(text, HasSubstr("  row         accuracy\n  all data  73.2 ± 0.3\n▶ λ                  8\n"));
}

TEST(Terminal, ASentenceInTheLastColumnIsWrappedAndNotCut) {
  const std::string text =
      render_terminal(report_of(Table{.title = "",
                                      .columns = {{"step", true}, {"message", false}},
                                      .rows = {{{"7", "The linear solve stopped at its limit of 20 products."}}}}),
                      40);
  EXPECT_THAT(text, HasSubstr("     7  The linear solve stopped at its\n        limit of 20 products.\n"));
}

TEST(Terminal, KeepsToItsWidth) {
  std::string words;
  for (int i = 0; i < 60; ++i) words += "word ";
  Report report = report_of(Text{words});
  report.subtitle = words;
  report.verdict = {Grade::kWarn, words};
  report.sections[0].blocks.emplace_back(KeyValues{"", {{"key", words}}});
  report.sections[0].blocks.emplace_back(
      Table{.title = "", .columns = {{"a", false}, {"b", true}}, .rows = {{{Cell(words), "1"}}}});
  report.sections[0].blocks.emplace_back(
      Table{.title = "", .columns = {{"a", true}, {"b", false}}, .rows = {{{"1", Cell(words)}}}});
  report.sections[0].blocks.emplace_back(
      BarChart{.title = "", .label_name = "l", .value_label = "v", .labels = {words}, .series = {{"s", {1.5}}}});
  for (const int width : {50, 80, 120})
    EXPECT_LE(widest_line(render_terminal(report, width)), static_cast<size_t>(width)) << width;
}

TEST(Terminal, DrawsCurvesFromLowToHigh) {
  const std::string text = render_terminal(
      report_of(LineChart{.title = "", .x_label = "", .y_label = "", .series = {{"loss", {0, 1, 2, 3}, {8, 1, NAN, 4.5}}}}));
  EXPECT_THAT(text, testing::ContainsRegex("loss +8 █▁ ▅ +4.5\n"));
}

TEST(Terminal, NegativeBarsGoToTheLeft) {
  const std::string text = render_terminal(report_of(BarChart{
      .title = "", .label_name = "part", .value_label = "x", .labels = {"a", "b", "c"}, .series = {{"x", {2, -1, NAN}}}}));
  EXPECT_THAT(text, HasSubstr("a      2            │██████████\n"));
  EXPECT_THAT(text, HasSubstr("b     -1       █████│\n"));
}

TEST(Terminal, NamesOfBarsAreShownWholeBesideManySeries) {
  const std::vector<double> values = {0.75, 0.25};
  const std::string text = render_terminal(report_of(BarChart{.title = "",
                                                              .label_name = "source",
                                                              .value_label = "",
                                                              .labels = {"careful labeller 3", "confused labeller 1"},
                                                              .series = {{"learned weight", values, {0.01, 0.02}},
                                                                         {"estimated share of right labels", values},
                                                                         {"true share of right labels", values}}}),
                                           80);
  EXPECT_LE(widest_line(text), 80U);
  EXPECT_THAT(text, HasSubstr("  careful labeller 3 "));
  EXPECT_THAT(text, HasSubstr("  confused labeller 1 "));
  EXPECT_THAT(text, Not(HasSubstr("…")));
  // Three times the value, three times the bar.
  std::vector<size_t> bars;
  for (size_t begin = 0; (begin = text.find("█", begin)) != std::string::npos;) {
    const size_t end = text.find('\n', begin);
    bars.push_back((end - begin) / std::string("█").size());
    begin = end;
  }
  ASSERT_EQ(bars.size(), 2U);
  EXPECT_NEAR(static_cast<double>(bars[0]), 3.0 * static_cast<double>(bars[1]), 1.5);
}

TEST(Terminal, HeadersOfNumbersGoOnInTheNextLineWhereTheTableIsTooWide) {
  const std::string text =
      render_terminal(report_of(Table{.title = "",
                                      .columns = {{"name", false}, {"a long header of words", true}, {"another one", true}},
                                      .rows = {{{"somebody's name", "12", "3"}}}}),
                      40);
  EXPECT_LE(widest_line(text), 40U);
  EXPECT_THAT(text, HasSubstr("somebody's name"));
  EXPECT_THAT(text, Not(HasSubstr("…")));
  for (const char* word : {"long", "header", "words", "another"}) EXPECT_THAT(text, HasSubstr(word));
}

TEST(Terminal, ColourIsAskedForAndUserTextCannotBringItsOwn) {
  Report report = report_of(Text{"evil \x1b[2J text"});
  report.verdict = {Grade::kOk, "fine"};
  EXPECT_THAT(render_terminal(report, 80, false), Not(HasSubstr("\x1b")));
  EXPECT_THAT(render_terminal(report, 80, true), HasSubstr("\x1b[1;32mOK\x1b[0m"));
  EXPECT_THAT(render_terminal(report, 80, true), Not(HasSubstr("\x1b[2J")));
}

TEST(Terminal, LeavesOutSectionsItCannotShow) {
  EXPECT_THAT(render_terminal(report_of(Preformatted{"config", "text"})), Not(HasSubstr("section")));
}

}  // namespace
}  // namespace bilevel
