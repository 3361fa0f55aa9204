#include "studies/study.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "studies/registry.h"
#include "studies/study_page.h"

namespace bilevel::study_test {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kToml = R"toml(
title = "Tiny"
paper = "A. Author, A tiny | paper, 2020"
method = "It adds."
formula = "1 + 1 = 2"
[settings]
seeds = [1, 2, 3]
scale = 2.0
[quick]
seeds = [1]
[claims.sum]
says = "a <b> sum"
source = "equation 1"
paper = "2"
at_least = 1.9
at_most = 2.1
why = "as printed"
[claims.large]
says = "more"
source = "table 2"
paper = "10"
at_least = 10.0
why = "as printed"
full_only = true
known = "not seen here"
reason = "It is small here."
)toml";

void tiny(StudyRun& run) {
  const double scale = run.setting<double>("scale");
  for (const int64_t seed : run.seeds()) {
    run.measure("sum", scale + 0.01 * static_cast<double>(seed - 1));
    run.measure("large", static_cast<double>(seed) * at::get_num_threads());
  }
  run.picture(LineChart{.title = "A line", .x_label = "x", .y_label = "y", .series = {{"s", {1, 2}, {3, 4}}}});
}
const Study kTiny{"tiny", kToml, tiny};

TEST(Reproduce, MeasuresAtItsScaleOnOneThreadAndJudges) {
  const StudyResult full = reproduce(kTiny, Scale::kFull), quick = reproduce(kTiny, Scale::kQuick);
  ASSERT_EQ(full.judgements.size(), 2u);
  EXPECT_EQ(full.judgements[0].claim.name, "sum");
  EXPECT_THAT(full.judgements[0].measured.values, ::testing::ElementsAre(2.0, 2.01, 2.02));
  EXPECT_EQ(full.judgements[0].verdict, Verdict::kConfirmed);
  EXPECT_THAT(full.judgements[1].measured.values, ::testing::ElementsAre(1.0, 2.0, 3.0));
  EXPECT_EQ(full.judgements[1].verdict, Verdict::kNotSeen);
  EXPECT_EQ(full.grade(), Grade::kWarn);
  EXPECT_EQ(quick.judgements[0].measured.values.size(), 1u);
  EXPECT_EQ(quick.judgements[1].verdict, Verdict::kNotRun);
  EXPECT_EQ(quick.grade(), Grade::kOk);
}

TEST(Reproduce, IsBadWhereAClaimIsWorseThanKnown) {
  const Study off{"tiny", kToml, [](StudyRun& run) {
                    run.setting<double>("scale");
                    run.seeds();
                    run.measure("sum", 3.0);
                  }};
  EXPECT_EQ(reproduce(off, Scale::kQuick).grade(), Grade::kBad);
}

std::string error_of(const Study& study, Scale scale = Scale::kFull) {
  try {
    reproduce(study, scale);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(Reproduce, RefusesAStudyThatLeavesOutAClaimOrASettingOrAsksForMore) {
  EXPECT_THAT(
      error_of({"tiny", kToml, [](StudyRun& run) { run.seeds(), run.setting<double>("scale"), run.measure("sum", 2.0); }}),
      HasSubstr("did not measure its claim \"large\""));
  EXPECT_THAT(error_of({"tiny", kToml, [](StudyRun& run) { run.measure("summ", 2.0); }}), HasSubstr("\"sum\""));
  EXPECT_THAT(error_of({"tiny", kToml, [](StudyRun& run) { run.seeds(), run.measure("sum", 2.0); }}, Scale::kQuick),
              HasSubstr("scale"));
  EXPECT_THAT(error_of({"tiny", kToml, [](StudyRun& run) { run.setting<int64_t>("stairs"); }}), HasSubstr("stairs"));
  EXPECT_THAT(error_of({"tiny", kToml, [](StudyRun& run) { run.setting<int64_t>("scale"); }}),
              HasSubstr("studies/tiny/study.toml:8"));
}

TEST(Reproduce, RefusesATextWithoutPaperOrClaimsOrWithUnknownKeys) {
  const std::string toml = kToml;
  const auto without = [&](const std::string& line) {
    std::string text = toml;
    return text.erase(text.find(line), line.size());
  };
  EXPECT_THAT(error_of({"tiny", without("formula = \"1 + 1 = 2\"\n"), tiny}), HasSubstr("formula"));
  EXPECT_THAT(error_of({"tiny", toml.substr(0, toml.find("[claims.sum]")), tiny}), HasSubstr("claims"));
  EXPECT_THAT(error_of({"tiny", "sedes = 1\n" + toml, tiny}), HasSubstr("sedes"));
  const std::string quick = toml.substr(0, toml.find("[claims.sum]")) + "skale = 1.0\n" + toml.substr(toml.find("[claims.sum]"));
  EXPECT_THAT(error_of({"tiny", quick, tiny}), HasSubstr("skale"));
}

TEST(StudyPages, ShowClaimBesideMeasured) {
  const StudyResult result = reproduce(kTiny, Scale::kFull);
  const std::string readme = study_readme(result);
  EXPECT_THAT(readme, HasSubstr("| a \\<b> sum | equation 1 | 2 | 2.0100 ± 0.0058 | 3 | 1.9 to 2.1 | confirmed |")) << readme;
  EXPECT_THAT(readme, HasSubstr("| more | table 2 | 10 | 2.00 ± 0.58 | 3 | at least 10 | not seen here |")) << readme;
  EXPECT_THAT(readme, HasSubstr("It is small here."));
  EXPECT_THAT(readme, HasSubstr("| x | s |"));

  const nlohmann::json json = nlohmann::json::parse(study_json({result}));
  const auto& claims = json["studies"][0]["claims"];
  EXPECT_EQ(claims[0]["verdict"], "confirmed");
  EXPECT_DOUBLE_EQ(claims[0]["mean"], 2.01);
  EXPECT_TRUE(claims[1]["at_most"].is_null());
  EXPECT_EQ(json["studies"][0]["status"], "WARN");
  EXPECT_THAT(claim_line(result, result.judgements[1]), HasSubstr("tiny  not seen here  large: 2.00 ± 0.58 (bar: at least 10)"));
}

TEST(StudyPages, AreWrittenToADirectory) {
  const std::string directory = ::testing::TempDir() + "/study_pages";
  std::filesystem::remove_all(directory);
  const StudyResult result = reproduce(kTiny, Scale::kQuick);
  write_study_pages(directory, {result});
  EXPECT_EQ(read_file(directory + "/tiny/README.md"), study_readme(result));
  EXPECT_THAT(read_file(directory + "/index.html"), ::testing::AllOf(HasSubstr("a &lt;b&gt; sum"), HasSubstr("A line")));
  EXPECT_EQ(read_file(directory + "/verdicts.json"), study_json({result}) + "\n");
  write_file(directory + "/file", "");
  EXPECT_THROW(write_study_pages(directory + "/file", {result}), Error);
}

TEST(Registry, EveryStudyReadsAndSaysItsPaper) {
  for (const Study& study : studies()) {
    const auto [text, claims] = read_study(study);
    EXPECT_THAT(text.paper, HasSubstr("20")) << study.slug;
    EXPECT_GE(claims.size(), 1u) << study.slug;
  }
  EXPECT_THROW(study_of("fsd"), Error);
}

}  // namespace
}  // namespace bilevel::study_test
