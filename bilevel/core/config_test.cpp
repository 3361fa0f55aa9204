#include "bilevel/core/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Config, KeepsTheOrderOfTheFile) {
  const Config config = Config::parse("[h]\nzeta = {a = 1}\nalpha = {b = 2}\n[h.mid]\nc = 1\n", "c.toml");
  EXPECT_THAT(config.root().section("h").keys(), ElementsAre("zeta", "alpha", "mid"));
}

TEST(Config, KeepsTheOrderThroughItsOwnText) {
  Config config = Config::parse("[h]\nzeta = {a = 1}\nalpha = {b = 2}\n", "c.toml");
  config.set("h.beta.c=3");
  config.set("h.zeta.a=7");
  const Config again = Config::parse(config.text(), "again.toml");
  EXPECT_THAT(again.root().section("h").keys(), ElementsAre("zeta", "alpha", "beta"));
  int64_t a = 0;
  again.root().section("h").section("zeta").read("a", a);
  EXPECT_EQ(a, 7);
}

TEST(Config, CompletesItselfWithTheDefaultsThatWereRead) {
  const Config config = Config::parse("[inner]\nsteps = 5\n", "c.toml");
  Section inner = config.root().section("inner");
  int64_t steps = 100;
  double lr = 0.1;
  std::string rule = "sgd \"plain\"";
  inner.read("steps", steps);
  inner.read("lr", lr);
  inner.read("rule", rule);
  EXPECT_EQ(steps, 5);
  const Config again = Config::parse(config.text(), "again.toml");
  Section complete = again.root().section("inner");
  double lr_again = 0;
  std::string rule_again;
  complete.read("lr", lr_again);
  complete.read("rule", rule_again);
  EXPECT_EQ(lr_again, 0.1);
  EXPECT_EQ(rule_again, rule);
}

TEST(Config, RefusesAnUnknownKeyWithItsLineAndTheNearestKnownOne) {
  const Config config = Config::parse("[inner]\n\nstesp = 5\n", "c.toml");
  Section inner = config.root().section("inner");
  int64_t steps = 100;
  inner.read("steps", steps);
  const std::string message = error_of([&] { inner.finish(); });
  EXPECT_THAT(message, HasSubstr("c.toml:3"));
  EXPECT_THAT(message, HasSubstr("inner.stesp"));
  EXPECT_THAT(message, HasSubstr("\"steps\""));
}

TEST(Config, NamesTheLineOfAWrongTypeAndOfASyntaxError) {
  const Config config = Config::parse("a = 1\nb = \"two\"\n", "c.toml");
  int64_t b = 0;
  EXPECT_THAT(error_of([&] { config.root().read("b", b); }), HasSubstr("c.toml:2"));
  EXPECT_THAT(error_of([] { Config::parse("a = 1\nb = = 2\n", "c.toml"); }), HasSubstr("c.toml:2"));
}

TEST(Config, ReadsAgainWhateverTextItWrites) {
  const Config config = Config::parse(R"("odd\nkey" = "a\n'''\n\"\"\" \u0001\u007f \\ é")", "c.toml");
  const Config again = Config::parse(config.text(), "again.toml");
  std::string value;
  again.root().read("odd\nkey", value);
  EXPECT_EQ(value, "a\n'''\n\"\"\" \x01\x7f \\ é");
}

TEST(Config, RefusesAFileThatFailsAnAssertionOfTheParserWithItsLine) {  // found by fuzzing
  EXPECT_THAT(error_of([] { Config::parse("a = 1\nb = \"\"\"\nx\n\"\"\"\n[`a]\nc = 1\n", "c.toml"); }), HasSubstr("c.toml:5"));
}

TEST(Config, ReadsAWholeNumberWhereANumberIsAskedForButNotTheOtherWayRound) {
  const Config config = Config::parse("a = 1\nb = 1.5\n", "c.toml");
  double a = 0;
  int64_t b = 0;
  config.root().read("a", a);
  EXPECT_EQ(a, 1.0);
  EXPECT_THROW(config.root().read("b", b), Error);
}

TEST(Config, SetTakesAnUnquotedString) {
  Config config = Config::parse("", "c.toml");
  config.set("inner.rule=adam");
  std::string rule;
  config.root().section("inner").read("rule", rule);
  EXPECT_EQ(rule, "adam");
  EXPECT_THROW(config.set("no-equals-sign"), Error);
}

TEST(Config, PathsAreRelativeToTheFile) {
  const Config config = Config::parse("x = \"../a.npy\"\n", "/data/sub/c.toml");
  std::string x;
  config.root().read_path("x", x);
  EXPECT_EQ(x, "/data/a.npy");
}

TEST(Config, TellsWhatWasSetAndWhatNobodyReadYet) {
  Config config = Config::parse("[h]\na = 1\nb = 2\n", "c.toml");
  config.set("h.b=5");
  config.set("h.c=7");
  Section h = config.root().section("h");
  int64_t b = 0;
  h.read("b", b);
  EXPECT_FALSE(h.was_set("a"));
  EXPECT_TRUE(h.was_set("b"));
  EXPECT_TRUE(h.was_set("c"));
  EXPECT_FALSE(h.was_set("d"));
  EXPECT_THAT(h.unread(), ElementsAre("a", "c"));
}

}  // namespace
}  // namespace bilevel
