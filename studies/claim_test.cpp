#include "studies/claim.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "bilevel/core/error.h"

namespace bilevel::claim_test {
namespace {

using ::testing::HasSubstr;

Claim claim(double at_least, double at_most) {
  Claim one;
  one.bar = {at_least, at_most};
  return one;
}

TEST(Judge, ConfirmsOnlyWhatPassesByTwoStandardErrors) {
  // Mean 1, standard error 0.1/√3: 1 − 2·0.0577 = 0.885.
  const Measured measured{{0.9, 1.0, 1.1}};
  EXPECT_NEAR(measured.standard_error(), 0.1 / std::sqrt(3.0), 1e-15);
  EXPECT_EQ(judge(claim(0.88, INFINITY), measured).verdict, Verdict::kConfirmed);
  EXPECT_EQ(judge(claim(0.89, INFINITY), measured).verdict, Verdict::kPartly);
  EXPECT_EQ(judge(claim(1.01, INFINITY), measured).verdict, Verdict::kNotSeen);
  EXPECT_EQ(judge(claim(-INFINITY, 1.12), measured).verdict, Verdict::kConfirmed);
  EXPECT_EQ(judge(claim(-INFINITY, 1.11), measured).verdict, Verdict::kPartly);
  EXPECT_EQ(judge(claim(0.89, 1.12), measured).verdict, Verdict::kPartly);  // at one end
}

TEST(Judge, TakesASingleValueAsItIs) {
  EXPECT_EQ(judge(claim(1.0, 1.0), {{1.0}}).verdict, Verdict::kConfirmed);
  EXPECT_EQ(judge(claim(1.0, 2.0), {{2.1}}).verdict, Verdict::kNotSeen);
}

TEST(Judge, SeesNothingInWhatIsNotFinite) {
  EXPECT_EQ(judge(claim(-INFINITY, 1.0), {{0.5, NAN}}).verdict, Verdict::kNotSeen);
  EXPECT_EQ(judge(claim(-INFINITY, 1.0), {{-INFINITY}}).verdict, Verdict::kNotSeen);
}

TEST(Judge, GivesTheReasonWhereAClaimIsNotConfirmed) {
  Claim one = claim(1.0, INFINITY);
  one.reason = "The data are too few.";
  EXPECT_EQ(judge(one, {{2.0}}).reason, "");
  EXPECT_THAT(judge(one, {{0.5}}).reason,
              ::testing::AllOf(HasSubstr("0.5 is not at least 1"), HasSubstr("The data are too few.")));
  EXPECT_EQ(judge(one, {}).verdict, Verdict::kNotRun);
}

TEST(Judge, ExpectsWhatIsKnownAndNothingWorse) {
  Claim one = claim(1.0, INFINITY);
  EXPECT_TRUE(judge(one, {{0.5}}).unexpected());
  EXPECT_FALSE(judge(one, {}).unexpected());
  one.known = Verdict::kNotSeen;
  EXPECT_FALSE(judge(one, {{0.5}}).unexpected());
  one.known = Verdict::kPartly;
  EXPECT_TRUE(judge(one, {{0.5}}).unexpected());
  EXPECT_FALSE(judge(one, {{0.8, 1.3}}).unexpected());
}

std::string error_of(const std::string& toml) {
  try {
    read_claim(Config::parse(toml, "study.toml").root(), "c");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

constexpr const char* kWhole = "says = \"a\"\nsource = \"section 1\"\npaper = \"2\"\nwhy = \"b\"\n";

TEST(ReadClaim, WantsAllOfAClaimAndABar) {
  EXPECT_EQ(error_of(std::string(kWhole) + "at_least = 1.0\n"), "");
  EXPECT_THAT(error_of(kWhole), HasSubstr("at_least, at_most or both"));
  EXPECT_THAT(error_of("says = \"a\"\nat_least = 1.0\n"), HasSubstr("source"));
  EXPECT_THAT(error_of(std::string(kWhole) + "at_least = 2.0\nat_most = 1.0\n"), HasSubstr("study.toml:5"));
  EXPECT_THAT(error_of(std::string(kWhole) + "at_least = nan\n"), HasSubstr("finite"));
  EXPECT_THAT(error_of(std::string(kWhole) + "at_least = 1.0\nat_mots = 2.0\n"), HasSubstr("at_mots"));
}

TEST(ReadClaim, WantsAReasonForWhatIsKnownToFail) {
  const std::string bar = std::string(kWhole) + "at_most = 1.0\n";
  EXPECT_THAT(error_of(bar + "known = \"partly\"\n"), HasSubstr("reason"));
  EXPECT_THAT(error_of(bar + "known = \"partyl\"\nreason = \"r\"\n"), HasSubstr("partly"));
  const Claim one = read_claim(Config::parse(bar + "known = \"not seen here\"\nreason = \"r\"\n", "study.toml").root(), "c");
  EXPECT_EQ(one.known, Verdict::kNotSeen);
  EXPECT_EQ(one.reason, "r");
  EXPECT_EQ(one.bar.text(), "at most 1");
}

}  // namespace
}  // namespace bilevel::claim_test
