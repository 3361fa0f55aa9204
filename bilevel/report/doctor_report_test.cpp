#include "bilevel/report/doctor_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "bilevel/report/html.h"
#include "bilevel/report/terminal.h"

namespace bilevel::doctor_report_test {
namespace {

using testing::HasSubstr;
using testing::Not;

Trial trial(const std::string& name, double error, double seconds) {
  Trial out;
  out.settings = {{"estimator", "\"implicit\""}, {"solver", "\"" + name + "\""}};
  out.name = out.family = "implicit · " + name;
  out.outcome = Trial::Outcome::kDone;
  out.error = error;
  out.cosine = 1 - error;
  out.norm_ratio = 1 + error;
  out.seconds = seconds;
  out.cost.hvps = 7;
  out.cost.peak_bytes = 3'000'000;
  return out;
}

Diagnosis example() {
  Diagnosis d;
  d.outer_size = 64;
  d.inner_size = 650;
  d.reference.how = "by <hand>";
  d.reference.differentiates = "F";
  d.reference.norm = 2.0;
  d.reference.direct_norm = 0.5;
  d.reference.trusted = true;
  d.reference.stopping_error = 0.03;
  d.trials = {trial("cg", 0.004, 0.2), trial("neumann", 0.03, 0.1), trial("dense", 0.0, 0.9)};
  d.trials[1].configured = true;
  Trial refused;
  refused.name = "unrolled";
  refused.outcome = Trial::Outcome::kNotApplicable;
  refused.remark = "there are no steps";
  d.trials.push_back(refused);
  d.traps = {"Mind the gap."};
  d.within_1 = 0;
  d.within_5 = 1;
  d.best = 2;
  d.advice = "Take cg.";
  return d;
}

TEST(DoctorReport, ShowsTrialsByErrorAdviceAndWhatWasNotTried) {
  const std::string text = render_terminal(doctor_report(example(), "ridge.toml"), 120);
  EXPECT_THAT(text, HasSubstr("Doctor: ridge.toml"));
  EXPECT_THAT(text, HasSubstr("Take cg."));
  EXPECT_THAT(text, HasSubstr("Mind the gap."));
  EXPECT_LT(text.find("implicit · dense"), text.find("implicit · cg"));
  EXPECT_LT(text.find("implicit · cg"), text.find("implicit · neumann (yours)"));
  EXPECT_THAT(text, HasSubstr("0.4 %"));
  EXPECT_THAT(text, HasSubstr("there are no steps"));
  EXPECT_THAT(text, Not(HasSubstr("Error against time"))) << "a terminal shows no scatter chart";
}

TEST(DoctorReport, DrawsErrorAgainstCostOnLogarithmicAxes) {
  const std::string page = render_html(doctor_report(example(), "ridge.toml"));
  const std::string tag = "<script type=\"application/json\" id=\"charts\">";
  const size_t begin = page.find(tag) + tag.size();
  const auto charts = nlohmann::json::parse(page.substr(begin, page.find("</script>", begin) - begin));
  ASSERT_EQ(charts.size(), 2u);
  EXPECT_EQ(charts[0]["scatter"], true);
  EXPECT_EQ(charts[0]["logX"], true);
  EXPECT_EQ(charts[0]["logY"], true);
  ASSERT_EQ(charts[0]["series"].size(), 3u) << "one for each family";
  EXPECT_EQ(charts[0]["series"][0]["labels"][0], "implicit · cg");
  EXPECT_EQ(charts[0]["series"][0]["x"][0], 0.2);
  EXPECT_EQ(charts[0]["series"][0]["y"][0], 0.004);
  EXPECT_GT(charts[0]["series"][1]["y"][0], 0.0) << "an error of zero has a place too";
  EXPECT_EQ(charts[1]["series"][0]["x"][0], 3.0) << "MB";
  EXPECT_THAT(page, HasSubstr("by &lt;hand&gt;"));
}

TEST(DoctorReport, GivesTheLinesOfTheCheapestWithinOnePercentElseFiveElseTheNearest) {
  Diagnosis d = example();
  EXPECT_EQ(recommended_toml(d), "[hypergradient]\nestimator = \"implicit\"\nsolver = \"cg\"\n");
  d.within_1.reset();
  EXPECT_THAT(recommended_toml(d), HasSubstr("neumann"));
  d.within_5.reset();
  EXPECT_THAT(recommended_toml(d), HasSubstr("dense"));
  d.best.reset();
  EXPECT_EQ(recommended_toml(d), "");
}

TEST(DoctorReport, WritesStrictJson) {
  Diagnosis d = example();
  d.trials[0].cosine = NAN;
  const auto json = nlohmann::json::parse(doctor_json(d));
  EXPECT_EQ(json["reference"]["norm"], 2.0);
  EXPECT_TRUE(json["trials"][0]["cosine"].is_null());
  EXPECT_EQ(json["trials"][1]["configured"], true);
  EXPECT_EQ(json["trials"][3]["outcome"], "not applicable");
  EXPECT_FALSE(json["trials"][3].contains("error"));
  EXPECT_EQ(json["recommendation"]["within_1_percent"], "implicit · cg");
  EXPECT_EQ(json["traps"][0], "Mind the gap.");
}

}  // namespace
}  // namespace bilevel::doctor_report_test
