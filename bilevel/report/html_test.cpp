#include "bilevel/report/html.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "bilevel/report/assets.h"
#include "bilevel/report/report.h"

namespace bilevel {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr const char* kHostile = "</script><script>alert(1)</script>\"'&<!--";

std::string page_of(Block block) {
  return render_html(Report{.title = "title", .subtitle = "", .sections = {{"section", {std::move(block)}}}});
}

/// The data of the charts as the page's script will read them.
nlohmann::json charts_of(const std::string& page) {
  const std::string tag = "<script type=\"application/json\" id=\"charts\">";
  const size_t begin = page.find(tag);
  if (begin == std::string::npos) return {};
  return nlohmann::json::parse(page.substr(begin + tag.size(), page.find("</script>", begin) - begin - tag.size()));
}

size_t occurrences(const std::string& text, const std::string& what) {
  size_t count = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++count;
  return count;
}

TEST(Html, EscapesWhatHasAMeaningInHtml) {
  EXPECT_EQ(escape_html("a < b && \"c\" > 'd'"), "a &lt; b &amp;&amp; &quot;c&quot; &gt; &#39;d&#39;");
  EXPECT_EQ(escape_html("‖r‖ ± λ"), "‖r‖ ± λ");
  EXPECT_EQ(escape_html("bad \xff byte, \x1b[31mcolour and \x7f"), "bad \uFFFD byte, [31mcolour and ");
}

TEST(Html, NoTextOfAnyBlockReachesThePageUnescaped) {
  const std::string h = kHostile;
  const std::vector<Block> blocks = {
      Text{h, Text::Tone::kWarning},
      Figures{{{h, h, h}}},
      KeyValues{h, {{h, h}}},
      Table{.title = h, .columns = {{h, false}}, .rows = {{{Cell(h)}}}, .note = h},
      LineChart{.title = h, .x_label = h, .y_label = h, .series = {{h, {0, 1}, {1, 2}}}, .note = h},
      BarChart{.title = h, .label_name = h, .value_label = h, .labels = {h}, .series = {{h, {1}}}, .note = h},
      Gallery{.title = h, .pictures = {{"png", h, {{h, h}}}}, .note = h},
      Preformatted{h, h}};
  for (const Block& block : blocks) {
    const std::string page =
        render_html(Report{.title = h, .subtitle = h, .verdict = {Grade::kBad, h}, .sections = {{h, {block}}}});
    EXPECT_THAT(page, Not(HasSubstr("<script>alert"))) << "block " << block.index();
    EXPECT_THAT(page, HasSubstr("&lt;script&gt;alert(1)&lt;/script&gt;")) << "block " << block.index();
    const bool chart = std::holds_alternative<LineChart>(block) || std::holds_alternative<BarChart>(block);
    EXPECT_EQ(occurrences(page, "<script"), chart ? 3u : 0u) << "block " << block.index();
    EXPECT_EQ(occurrences(page, "</script"), chart ? 3u : 0u) << "block " << block.index();
  }
}

TEST(Html, ChartDataComeThroughTheEscapesUnchanged) {
  const nlohmann::json charts = charts_of(page_of(
      LineChart{.title = "", .x_label = kHostile, .y_label = "y", .series = {{kHostile, {0, 1, 2}, {0.1, NAN, 1e-300}}}}));
  ASSERT_EQ(charts.size(), 1u);
  EXPECT_EQ(charts[0]["xLabel"], kHostile);
  EXPECT_EQ(charts[0]["series"][0]["name"], kHostile);
  EXPECT_EQ(charts[0]["series"][0]["y"], nlohmann::json::parse("[0.1, null, 1e-300]"));
}

TEST(Html, ALogarithmicAxisLeavesOutWhatHasNoLogarithm) {
  const nlohmann::json charts = charts_of(page_of(
      LineChart{.title = "", .x_label = "", .y_label = "", .log_y = true, .series = {{"s", {0, 1, 2, 3}, {0, 1, -1, 2}}}}));
  EXPECT_EQ(charts[0]["series"][0]["y"], nlohmann::json::parse("[null, 1.0, null, 2.0]"));
}

TEST(Html, TheNumbersOfAChartStandInATableToo) {
  const std::string line =
      page_of(LineChart{.title = "t", .x_label = "x", .y_label = "y", .series = {{"s", {0, 7}, {0.125, 0.375}}}});
  EXPECT_THAT(line, HasSubstr("<td class=\"number\">7</td><td class=\"number\">0.375</td>"));
  const std::string bar = page_of(BarChart{
      .title = "t", .label_name = "l", .value_label = "v", .labels = {"alpha"}, .series = {{"trust", {0.8125}, {0.051}}}});
  EXPECT_THAT(bar, HasSubstr("<td>alpha</td><td class=\"number\">0.812<span class=\"error\"> ± 0.051</span></td>"));
}

TEST(Html, ATableMarksNumbersErrorsAndTheRowThatMatters) {
  const std::string page = page_of(Table{.title = "t",
                                         .columns = {{"row", false}, {"accuracy", true}},
                                         .rows = {{{"all", Cell::mean(73.25, 0.31, 1)}}, {{"learned", Cell(NAN)}, true}},
                                         .note = "five seeds"});
  EXPECT_THAT(page, HasSubstr("<tr><td>all</td><td class=\"number\">73.2<span class=\"error\"> ± 0.3</span></td></tr>"));
  EXPECT_THAT(page, HasSubstr("<tr class=\"highlight\"><td>learned</td><td class=\"number\">—</td></tr>"));
  EXPECT_THAT(page, HasSubstr("five seeds"));
}

TEST(Html, IsOneFileThatAsksForNothing) {
  const std::string page =
      page_of(BarChart{.title = "t", .label_name = "l", .value_label = "v", .labels = {"a"}, .series = {{"s", {1}}}});
  EXPECT_THAT(page, HasSubstr("default-src 'none'"));
  EXPECT_THAT(page, HasSubstr(std::string(chart_js())));
  EXPECT_THAT(page, Not(HasSubstr("<script src")));
  EXPECT_THAT(page, Not(HasSubstr("<link rel=\"stylesheet\"")));
  EXPECT_THAT(page, Not(HasSubstr("url(")));
}

TEST(Html, WithoutChartsThereIsNoScript) { EXPECT_THAT(page_of(Text{"only words"}), Not(HasSubstr("<script"))); }

TEST(Html, ABlankLineStartsAParagraph) { EXPECT_THAT(page_of(Text{"one\n\ntwo"}), HasSubstr("<p>one</p>\n<p>two</p>")); }

TEST(Assets, HoldWhatTheyShouldAndCannotEndTheirElement) {
  EXPECT_THAT(std::string(chart_js()), HasSubstr("Chart.js v3."));
  EXPECT_GT(chart_js().size(), 100000u);
  for (const std::string_view script : {chart_js(), page_js()}) {
    EXPECT_EQ(script.find("</script"), std::string_view::npos);
    EXPECT_EQ(script.find("<!--"), std::string_view::npos);
    EXPECT_EQ(script.find('\0'), std::string_view::npos);
  }
  EXPECT_EQ(page_css().find("</style"), std::string_view::npos);
}

}  // namespace
}  // namespace bilevel
