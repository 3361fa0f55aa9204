#include "bilevel/report/explain_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "bilevel/core/file.h"
#include "bilevel/report/html.h"
#include "bilevel/report/png.h"
#include "bilevel/report/terminal.h"

namespace bilevel::explain_report_test {
namespace {

using testing::HasSubstr;

Explanation example(const std::string& name = "l2[3]", int64_t step = 12) {
  Explanation e;
  e.name = name;
  e.step = step;
  e.x = -1.5;
  e.start = -4.0;
  e.value = -0.25;
  e.direct = 0.05;
  e.implicit = -0.3;
  e.parts = {{"weight", -0.4, 2.0}, {"bias", 0.1, 1.0}};
  std::string bytes;
  for (int i = 0; i < 256; ++i) bytes += static_cast<char>(i);
  e.samples = {{7, -0.2, 1.5, "shirt", "coat", bytes}, {1, 0.1, 0.2, "", "", ""}};
  e.residual = 1e-15;
  e.message = "Both splits are exact.";
  return e;
}

class Kept : public testing::Test {
 protected:
  Kept() : folder_((std::filesystem::temp_directory_path() / ("explain_report_test_" + std::to_string(getpid()))).string()) {
    std::filesystem::create_directories(folder_);
  }
  ~Kept() override { std::filesystem::remove_all(folder_); }
  std::string folder_;
};

TEST_F(Kept, ComesBackAsItWas) {
  EXPECT_TRUE(kept_explanations(folder_).empty());
  const Explanation given = example();
  keep_explanation(folder_, given);
  const auto kept = kept_explanations(folder_);
  ASSERT_EQ(kept.size(), 1u);
  const Explanation& e = kept[0];
  EXPECT_EQ(e.name, given.name);
  EXPECT_EQ(e.step, given.step);
  EXPECT_EQ(e.start, given.start);
  EXPECT_EQ(e.value, given.value);
  ASSERT_EQ(e.parts.size(), 2u);
  EXPECT_EQ(e.parts[1].value, 0.1);
  ASSERT_EQ(e.samples.size(), 2u);
  EXPECT_EQ(e.samples[0].png, given.samples[0].png) << "every byte";
  EXPECT_EQ(e.samples[0].predicted, "coat");
  EXPECT_EQ(to_json(e), to_json(given));
}

TEST_F(Kept, HasEachElementAndStepOnce) {
  keep_explanation(folder_, example("l2[3]", 12));
  keep_explanation(folder_, example("l2[3]", 4));
  keep_explanation(folder_, example("l2[0]", 12));
  Explanation again = example("l2[3]", 12);
  again.value = 9;
  keep_explanation(folder_, again);
  const auto kept = kept_explanations(folder_);
  ASSERT_EQ(kept.size(), 3u);
  EXPECT_EQ(kept.back().value, 9);
}

TEST_F(Kept, SurvivesWhatAHandHasChanged) {
  write_file(folder_ + "/explanations.json", "{");
  EXPECT_TRUE(kept_explanations(folder_).empty());
  write_file(folder_ + "/explanations.json", "[{\"name\": 3}, 5, {\"name\": \"a\"}]");
  EXPECT_TRUE(kept_explanations(folder_).empty());
  keep_explanation(folder_, example());
  EXPECT_EQ(kept_explanations(folder_).size(), 1u);
}

TEST(ExplainReport, SaysWhichWayAndDrawsTheShares) {
  Report report;
  report.sections.push_back(explanation_section(example()));
  const std::string text = render_terminal(report, 120);
  EXPECT_THAT(text, HasSubstr("Why l2[3] moves, at step 12"));
  EXPECT_THAT(text, HasSubstr("goes up"));
  EXPECT_THAT(text, HasSubstr("at the start -4"));
  EXPECT_THAT(text, HasSubstr("sample 7 (shirt)"));
  EXPECT_THAT(text, HasSubstr("█"));
  const std::string page = render_html(report);
  EXPECT_THAT(page, HasSubstr(base64(example().samples[0].png)));
  EXPECT_THAT(page, HasSubstr("The samples that pull hardest"));
}

TEST(ExplainReport, WritesNumbersThatAreNotFiniteAsNull) {
  Explanation e = example();
  e.value = NAN;
  EXPECT_TRUE(nlohmann::json::parse(to_json(e))["value"].is_null());
}

}  // namespace
}  // namespace bilevel::explain_report_test
