#include "bilevel/core/state.h"

#include <csignal>
#include <filesystem>

#include <sys/resource.h>

#include <gtest/gtest.h>

#include "bilevel/core/error.h"
#include "bilevel/core/file.h"

namespace bilevel {
namespace {

std::string temporary(const std::string& name) { return (std::filesystem::path(testing::TempDir()) / name).string(); }

TEST(State, SurvivesAFileBitForBit) {
  State state;
  state.set("x", at::randn({3, 5}, at::kDouble));
  state.set("empty", at::empty({0}, at::kFloat));
  state.set("scalar", at::scalar_tensor(2.5, at::kFloat));
  state.set("indices", at::arange(4, at::kLong));
  state.set("step", int64_t{-17});
  state.set("third", 1.0 / 3.0);
  state.set("infinite", std::numeric_limits<double>::infinity());
  state.set("name", std::string("a \"quoted\"\nline, ✓"));
  const std::string path = temporary("state");
  save_state(state, path);
  const State loaded = load_state(path);
  ASSERT_EQ(loaded.values().size(), state.values().size());
  for (const char* name : {"x", "empty", "scalar", "indices"}) {
    EXPECT_TRUE(at::equal(loaded.tensor(name), state.tensor(name))) << name;
    EXPECT_EQ(loaded.tensor(name).dtype(), state.tensor(name).dtype());
  }
  EXPECT_EQ(loaded.integer("step"), -17);
  EXPECT_EQ(loaded.number("third"), 1.0 / 3.0);
  EXPECT_EQ(loaded.number("infinite"), std::numeric_limits<double>::infinity());
  EXPECT_EQ(loaded.text("name"), state.text("name"));
}

TEST(State, NamesAMissingEntryAndAWrongType) {
  State state;
  state.set("step", int64_t{1});
  EXPECT_THROW(state.tensor("x"), Error);
  EXPECT_THROW(state.number("step"), Error);
}

TEST(State, ACloneIsNotReachedByInPlaceChanges) {
  State state;
  state.set("x", at::zeros({2}));
  const State copy = state.clone();
  state.tensor("x").add_(1);
  EXPECT_EQ(copy.tensor("x").sum().item<double>(), 0.0);
}

TEST(State, ATruncatedFileIsRefusedAtEveryLength) {
  State state;
  state.set("x", at::arange(6, at::kDouble));
  const std::string path = temporary("truncated");
  save_state(state, path);
  const std::string bytes = read_file(path);
  for (size_t length = 0; length < bytes.size(); ++length) {
    write_file(path, std::string_view(bytes).substr(0, length));
    EXPECT_THROW(load_state(path), Error) << length;
  }
}

TEST(WriteFile, LeavesTheOldFileWhereItCannotWrite) {
  const std::string path = temporary("kept");
  write_file(path, "old");
  rlimit former{};
  getrlimit(RLIMIT_FSIZE, &former);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit tight{1000, former.rlim_max};  // stands for a disk with room for 1,000 bytes
  setrlimit(RLIMIT_FSIZE, &tight);
  EXPECT_THROW(write_file(path, std::string(2000, 'x')), Error);
  setrlimit(RLIMIT_FSIZE, &former);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(read_file(path), "old");
  EXPECT_FALSE(std::filesystem::exists(path + ".partial"));
  EXPECT_THROW(write_file("/nowhere/at/all", "x"), Error);
}

}  // namespace
}  // namespace bilevel
