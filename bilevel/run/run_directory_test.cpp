#include "bilevel/run/run_directory.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"
#include "bilevel/problem/npy.h"
#include "bilevel/run/progress.h"

namespace bilevel {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::Not;

class RunDirectoryTest : public testing::Test {
 protected:
  RunDirectoryTest() {
    path_ = (fs::temp_directory_path() /
             fmt::format("bilevel-run-{}-{}", getpid(),
                         fs::path(::testing::UnitTest::GetInstance()->current_test_info()->name()).string()))
                .string();
    fs::remove_all(path_);
    x_.add("a", {2}).add("b", {1, 3});
    y_.add("w", {4});
  }
  ~RunDirectoryTest() override { fs::remove_all(path_); }
  RunDirectory create() const { return RunDirectory::create(path_, "[run]\nseed = 1\n"); }
  std::string log() const { return read_file(path_ + "/log.jsonl"); }

  static std::string message(const std::function<void()>& misuse) {
    try {
      misuse();
    } catch (const Error& error) {
      return error.what();
    }
    return "no error";
  }
  static Record record(int64_t step) {
    Record record;
    record.step = step;
    record.outer_loss = 0.1 * static_cast<double>(step);
    return record;
  }

  std::string path_;
  Layout x_, y_;
};

TEST_F(RunDirectoryTest, RefusesADirectoryThatHoldsAnotherRunOrAnything) {
  { const RunDirectory first = create(); }
  EXPECT_THAT(message([&] { create(); }), HasSubstr("holds another run"));
  fs::remove_all(path_);
  fs::create_directories(path_);
  { const RunDirectory empty = create(); }
  fs::remove_all(path_);
  fs::create_directories(path_);
  std::ofstream(path_ + "/thesis.tex") << "precious";
  EXPECT_THAT(message([&] { create(); }), HasSubstr("not empty"));
  EXPECT_THAT(message([&] { RunDirectory::check_free(path_); }), HasSubstr("not empty"));
  EXPECT_EQ(read_file(path_ + "/thesis.tex"), "precious");
  EXPECT_THAT(message([&] { RunDirectory::open(path_); }), HasSubstr("holds no run"));
}

TEST_F(RunDirectoryTest, IsLockedAgainstASecondProcess) {
  const RunDirectory first = create();
  EXPECT_THAT(message([&] { RunDirectory::open(path_); }), HasSubstr("Another process"));
}

TEST_F(RunDirectoryTest, NamesTheReasonWhereItCannotBeMade) {
  EXPECT_THAT(message([&] { RunDirectory::create("/proc/bilevel-run", ""); }), HasSubstr("/proc/bilevel-run"));
  std::ofstream(path_) << "a file";
  EXPECT_THAT(message([&] { RunDirectory::check_free(path_); }), HasSubstr("not a directory"));
  EXPECT_THAT(message([&] { create(); }), HasSubstr(path_));
}

TEST_F(RunDirectoryTest, LogsOneStrictJsonObjectForEachRecord) {
  RunDirectory directory = create();
  Record bad = record(0);
  bad.outer_loss = std::numeric_limits<double>::quiet_NaN();
  bad.hypergradient_norm = std::numeric_limits<double>::infinity();
  bad.message = "caf\xe9 \"quoted\"";
  bad.cost.seconds = 1.5;
  bad.cost.hvps = 7;
  directory.append(bad, {RollBack{3, 2, "why", 0.5, 1e-3}});
  EXPECT_THAT(log(), HasSubstr("\"step\":0,\"outer_loss\":null,"));
  EXPECT_THAT(log(), HasSubstr("\"hypergradient_norm\":null"));
  EXPECT_THAT(log(), HasSubstr("\"hvps\":7"));
  EXPECT_THAT(log(), HasSubstr("\"machine\":{\"seconds\":1.5,\"peak_bytes\":0}}\n"));
  EXPECT_THAT(log(), HasSubstr("\"roll_backs\":[{\"from\":3,\"to\":2,\"reason\":\"why\""));
  EXPECT_THAT(log(), HasSubstr("caf\xef\xbf\xbd \\\"quoted\\\""));
}

TEST_F(RunDirectoryTest, CutsTheLogAfterTheCheckpointAndATornLine) {
  RunDirectory directory = create();
  directory.append(record(0), {});
  directory.append(record(1), {});
  const std::string two = log();
  directory.append(record(2), {});
  { std::ofstream(path_ + "/log.jsonl", std::ios::app) << "{\"step\":3,\"outer_l"; }
  directory.cut_log(2);
  EXPECT_EQ(log(), two);
  directory.append(record(2), {});
  EXPECT_THAT(log(), HasSubstr("\"step\":2,"));
  EXPECT_THAT(message([&] { directory.cut_log(4); }), HasSubstr("lacks the record of step 3"));
}

TEST_F(RunDirectoryTest, KeepsTheEarlierCheckpointWhereTheDiskRefusesANewOne) {
  RunDirectory directory = create();
  State state;
  state.set("x", at::arange(5, at::kDouble));
  directory.checkpoint(state);
  fs::create_directory(path_ + "/checkpoint.partial");  // where the new one would be written
  State other;
  other.set("x", at::zeros({5}, at::kDouble));
  EXPECT_THAT(message([&] { directory.checkpoint(other); }), HasSubstr("checkpoint"));
  EXPECT_TRUE(at::equal(directory.load_checkpoint().tensor("x"), at::arange(5, at::kDouble)));
}

TEST_F(RunDirectoryTest, FinishesWithArraysLayoutAndSummary) {
  RunDirectory directory = create();
  directory.write_layout(x_, y_);
  EXPECT_FALSE(directory.finished());
  RunResult result;
  result.state.set("x", at::arange(5, at::kDouble));
  result.state.set("y", at::arange(4, at::kFloat));
  result.last = record(3);
  result.steps = 3;
  result.message = "done";
  directory.finish(result, "double-loop");
  EXPECT_TRUE(directory.finished());
  EXPECT_TRUE(at::equal(read_npy(path_ + "/x.npy"), at::arange(5, at::kDouble)));
  EXPECT_TRUE(at::equal(read_npy(path_ + "/y.npy"), at::arange(4, at::kFloat)));
  const std::string summary = read_file(path_ + "/summary.json");
  EXPECT_THAT(summary, HasSubstr("\"outcome\": \"done\""));
  EXPECT_THAT(summary, HasSubstr("\"steps\": 3"));
  const std::string layout = read_file(path_ + "/layout.json");
  EXPECT_THAT(layout, HasSubstr("\"name\": \"b\""));
  EXPECT_THAT(layout, HasSubstr("\"offset\": 2"));
}

TEST(Progress, ShowsLossNormStationarityAndTheTimeLeftWithinTheWidth) {
  Progress progress({}, 10);
  Record record;
  record.step = 4;
  record.outer_loss = 0.25;
  record.hypergradient_norm = 0.001;
  record.stationarity = 1e-5;
  const std::string text = progress.text(record, 30.0, 150);
  EXPECT_THAT(text, HasSubstr("5/10"));
  EXPECT_THAT(text, HasSubstr("30 s left"));
  EXPECT_THAT(text, HasSubstr("outer loss 0.25"));
  EXPECT_THAT(text, HasSubstr("1.00e-03"));
  EXPECT_THAT(text, HasSubstr("1.0e-05"));
  EXPECT_THAT(text, HasSubstr("############------------"));
  EXPECT_LT(progress.text(record, 30.0, 40).size(), 40u);
}

TEST(Progress, DrawsNothingBeforeItsPatienceEndsAndALinePerTenthOutsideATerminal) {
  std::FILE* file = std::tmpfile();
  ProgressOptions options;
  options.file = file;
  {
    Progress patient(options, 100);
    Record record;
    for (record.step = 0; record.step < 100; ++record.step) patient.update(record);
    EXPECT_EQ(std::ftell(file), 0);
  }
  options.patience = 0;
  {
    Progress eager(options, 100);
    Record record;
    for (record.step = 0; record.step < 100; ++record.step) eager.update(record);
  }
  std::rewind(file);
  int lines = 0;
  for (int c = std::fgetc(file); c != EOF; c = std::fgetc(file)) {
    lines += c == '\n';
    EXPECT_NE(c, '\r');
    EXPECT_NE(c, '\033');
  }
  std::fclose(file);
  EXPECT_EQ(lines, 10);
}

}  // namespace
}  // namespace bilevel
