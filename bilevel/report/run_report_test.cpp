#include "bilevel/report/run_report.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/report/html.h"
#include "bilevel/run/run_directory.h"

namespace bilevel {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

class RunReport : public testing::Test {
 protected:
  void SetUp() override {
    path_ = testing::TempDir() + "run_report_" + testing::UnitTest::GetInstance()->current_test_info()->name();
    fs::remove_all(path_);
  }
  void TearDown() override { fs::remove_all(path_); }

  static Record record(int64_t k) {
    Record r;
    r.step = k;
    r.outer_loss = 2.0 / static_cast<double>(k + 1);
    r.inner_loss = 0.25;
    r.hypergradient_norm = 0.5;
    r.stationarity = 1e-9;
    r.metrics = {{"accuracy", 0.5 + 0.01 * static_cast<double>(k)}, {"f1", 0.5}, {"perplexity", 40.0}};
    r.cost.gradients = 10;
    r.cost.hvps = 8;
    r.cost.seconds = 0.5;
    return r;
  }

  /// A run of `steps` updates with 60 source weights, two l2 and one step size; without its end where not `ended`.
  void write(int64_t steps, bool ended) {
    Layout x, y;
    x.add("source_weight", {60}).add("l2", {2}).add("step_size", {});
    y.add("w", {3});
    RunDirectory directory = RunDirectory::create(path_, "[hypergradient]\nestimator = \"implicit\"\n[data]\nnote = \"<b>\"\n");
    directory.write_layout(x, y);
    RunResult result;
    for (int64_t k = 0; k <= steps; ++k) {
      Record r = record(k);
      if (k == 2) r.grade = Grade::kWarn, r.message = "CG stopped early", r.hypergradient_norm = NAN;
      directory.append(r,
                       k == 3 ? std::vector<RollBack>{{3, 1, "The loss was not finite.", 0.5, 1e-3}} : std::vector<RollBack>{});
      result.cost += r.cost;
      result.last = r;
    }
    if (!ended) return;
    result.message = "All 4 steps were done.";
    result.steps = steps;
    result.cost.peak_bytes = 3 << 20;
    at::Tensor values = at::linspace(-1, 1, 63, at::kDouble);
    values[60] = 0.125;
    values[61] = -4;
    values[62] = 0.75;
    result.state.set("x", values);
    result.state.set("y", at::zeros({3}, at::kDouble));
    directory.finish(result, "double-loop");
  }

  template <class T>
  static const T* find(const Report& report, const std::string& title) {
    for (const auto& section : report.sections) {
      for (const Block& block : section.blocks) {
        const T* found = std::get_if<T>(&block);
        if (found != nullptr && found->title == title) return found;
      }
    }
    return nullptr;
  }

  std::string path_;
};

TEST_F(RunReport, HoldsTheCurvesOfTheLog) {
  write(4, true);
  const Report report = run_report(path_);
  EXPECT_EQ(report.verdict.grade, Grade::kOk);
  EXPECT_EQ(report.verdict.sentence, "All 4 steps were done.");
  EXPECT_EQ(report.subtitle, "double-loop · implicit hypergradient · 4 steps");
  const LineChart* outer = find<LineChart>(report, "Outer loss");
  ASSERT_NE(outer, nullptr);
  EXPECT_EQ(outer->series[0].x, (std::vector<double>{0, 1, 2, 3, 4}));
  EXPECT_DOUBLE_EQ(outer->series[0].y[3], 0.5);
  const LineChart* norm = find<LineChart>(report, "Hypergradient norm");
  ASSERT_NE(norm, nullptr);
  EXPECT_TRUE(std::isnan(norm->series[0].y[2]));  // null in the log
  EXPECT_TRUE(find<LineChart>(report, "Inner stationarity")->log_y);
  ASSERT_NE(find<LineChart>(report, "Metrics"), nullptr);
  ASSERT_EQ(find<LineChart>(report, "Metrics")->series.size(), 2u);
  EXPECT_EQ(find<LineChart>(report, "Metrics")->series[0].name, "accuracy");
  EXPECT_NE(find<LineChart>(report, "perplexity"), nullptr);  // on an axis of its own
}

TEST_F(RunReport, ShowsSmallPartsElementByElementAndLargeOnesAsHistograms) {
  write(4, true);
  const Report report = run_report(path_);
  const BarChart* l2 = find<BarChart>(report, "l2");
  ASSERT_NE(l2, nullptr);
  EXPECT_EQ(l2->labels, (std::vector<std::string>{"[0]", "[1]"}));
  EXPECT_EQ(l2->series[0].values, (std::vector<double>{0.125, -4}));
  const BarChart* weights = find<BarChart>(report, "source_weight");
  ASSERT_NE(weights, nullptr);
  double elements = 0;
  for (const double v : weights->series[0].values) elements += v;
  EXPECT_EQ(elements, 60);
  EXPECT_EQ(weights->labels.size(), 24u);
  const Table* table = find<Table>(report, "x at the end");
  ASSERT_NE(table, nullptr);
  EXPECT_EQ(table->rows.back().cells[0].text, "step_size");
  EXPECT_EQ(table->rows.back().cells[3].text, "0.75");
}

TEST_F(RunReport, AddsUpTheCostAndRepeatsWarningsAndConfiguration) {
  write(4, true);
  const Report report = run_report(path_);
  const Table* cost = find<Table>(report, "");
  ASSERT_NE(cost, nullptr);
  EXPECT_EQ(cost->rows[0].cells[1].text, "50");
  EXPECT_EQ(cost->rows[1].cells[1].text, "40");
  EXPECT_EQ(cost->rows[4].cells[1].text, "2.5 s");
  EXPECT_EQ(cost->rows[5].cells[1].text, "3.0 MiB");
  const Table* warnings = find<Table>(report, "What the run warned of");
  ASSERT_NE(warnings, nullptr);
  ASSERT_EQ(warnings->rows.size(), 2u);
  EXPECT_EQ(warnings->rows[0].cells[2].text, "CG stopped early");
  EXPECT_THAT(warnings->rows[1].cells[2].text, HasSubstr("The loss was not finite."));
  EXPECT_THAT(render_html(report), HasSubstr("note = &quot;&lt;b&gt;&quot;"));
}

TEST_F(RunReport, ReadsARunThatWasKilled) {
  write(4, false);
  const std::string log = read_file(path_ + "/log.jsonl");
  write_file(path_ + "/log.jsonl", log + "{\"step\": 5, \"outer_lo");
  const Report report = run_report(path_);
  EXPECT_EQ(report.verdict.grade, Grade::kWarn);
  EXPECT_THAT(report.verdict.sentence, HasSubstr("bilevel resume"));
  EXPECT_EQ(find<LineChart>(report, "Outer loss")->series[0].x.size(), 5u);
  EXPECT_EQ(find<Table>(report, "")->rows[0].cells[1].text, "50");
}

TEST_F(RunReport, ReadsARunThatHasJustBegun) {
  RunDirectory::create(path_, "[run]\nseed = 0\n");
  EXPECT_NE(find<Preformatted>(run_report(path_), "config.toml"), nullptr);
  EXPECT_THAT(terminal_summary(path_), HasSubstr("WARN"));
}

TEST_F(RunReport, ALongCurveIsThinnedButKeepsItsExtremes) {
  RunDirectory::create(path_, "");
  {
    std::string log;
    for (int k = 0; k < 9000; ++k)
      log += fmt::format("{{\"step\": {}, \"outer_loss\": {}}}\n", k, k == 4321 ? 1e6 : k == 777 ? -5.0 : 1.0);
    write_file(path_ + "/log.jsonl", log);
  }
  const Report report = run_report(path_);
  const LineChart* outer = find<LineChart>(report, "Outer loss");
  ASSERT_NE(outer, nullptr);
  const std::vector<double>&steps = outer->series[0].x, &values = outer->series[0].y;
  EXPECT_LE(steps.size(), 2002u);
  EXPECT_TRUE(std::is_sorted(steps.begin(), steps.end()));
  EXPECT_EQ(steps.back(), 8999);
  EXPECT_EQ(*std::max_element(values.begin(), values.end()), 1e6);
  EXPECT_EQ(*std::min_element(values.begin(), values.end()), -5);
}

TEST_F(RunReport, TellsHowRightTheHypergradientsAre) {
  RunDirectory directory = RunDirectory::create(path_, "[hypergradient]\n");
  for (int64_t k = 0; k < 8; ++k) {
    Record r = record(k);
    r.certificate.emplace();
    r.certificate->differentiates = "F";
    r.certificate->bound_reason = "No bound: none was asked for at this step.";
    if (k % 4 == 0) {
      r.certificate->error_bound = 1.25e-3;
      r.certificate->distance_to_F = 7.5e-4;
    }
    if (k == 4) {
      SpotCheck check;
      check.conclusive = true;
      check.disagreement = 0.0123;
      r.certificate->spot_check = check;
    }
    directory.append(r, {});
  }
  const Report report = run_report(path_);
  const auto section = std::find_if(report.sections.begin(), report.sections.end(),
                                    [](const Report::Section& one) { return one.title == "Certificates"; });
  ASSERT_NE(section, report.sections.end());
  const auto* chart = std::get_if<LineChart>(&section->blocks.at(0));
  ASSERT_NE(chart, nullptr);
  ASSERT_EQ(chart->series.size(), 3u);
  EXPECT_EQ(chart->series[1].x, (std::vector<double>{0, 4}));  // steps without a bound are no points
  EXPECT_EQ(chart->series[1].y, (std::vector<double>{1.25e-3, 1.25e-3}));
  EXPECT_EQ(chart->series[2].y, (std::vector<double>{7.5e-4, 7.5e-4}));
  const auto* table = std::get_if<Table>(&section->blocks.at(1));
  ASSERT_NE(table, nullptr);
  ASSERT_EQ(table->rows.size(), 2u);
  EXPECT_EQ(table->rows[1].cells.back().text, "differ by 0.012");
  EXPECT_THAT(terminal_summary(path_), HasSubstr("0.00125"));
}

TEST_F(RunReport, RefusesADirectoryWithoutARun) {
  fs::create_directories(path_);
  EXPECT_THROW(run_report(path_), Error);
  EXPECT_THROW(run_report(path_ + "/nowhere"), Error);
}

TEST_F(RunReport, TheTerminalNamesThePage) {
  write(4, true);
  EXPECT_THAT(terminal_summary(path_), Not(HasSubstr("report.html")));
  write_file(path_ + "/report.html", "page");
  EXPECT_THAT(terminal_summary(path_), HasSubstr(path_ + "/report.html"));
}

}  // namespace
}  // namespace bilevel
