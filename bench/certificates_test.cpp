#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "bench/certificate_study.h"

namespace bilevel {
namespace {

CertificateSummary study_of(const std::string& family, int64_t first, int64_t count) {
  std::vector<CertificateCase> cases;
  for (int64_t seed = first; seed < first + count; ++seed) cases.push_back(certificate_case(seed, family));
  return summarise(cases);
}

// The small version of the study of docs/certificates.md, on seeds that neither of its two parts has.
TEST(Certificates, HoldOnSixtyRandomProblems) {
  const CertificateSummary sum = study_of("implicit", 20000, 60);
  EXPECT_EQ(sum.damaged, 20);
  EXPECT_GE(sum.bounds, 30);
  EXPECT_EQ(sum.bounds_held, sum.bounds);
  // The median of so few scatters: half of the study's ratios are below 1.4 and a third above 20. The share within ten is 0.63
  // there, and three standard errors of it for forty cases are 0.23.
  EXPECT_GE(sum.share_within_ten, 0.40);
  EXPECT_GE(sum.median_tightness, 1);
  EXPECT_LE(sum.no_bound, 1);
  EXPECT_GE(sum.caught + sum.damaged_uncertain, 19);
  EXPECT_GE(sum.caught, 18);
  EXPECT_LE(sum.false_alarms, 1);
  EXPECT_EQ(sum.missed_errors, 0);
}

TEST(Certificates, HoldOnFifteenUnrolledAndFifteenConstrainedProblems) {
  for (const char* family : {"unrolled", "constrained"}) {
    SCOPED_TRACE(family);
    const CertificateSummary sum = study_of(family, 20000, 15);
    EXPECT_EQ(sum.damaged, 5);
    EXPECT_GE(sum.bounds, 8);
    EXPECT_EQ(sum.bounds_held, sum.bounds);
    EXPECT_GE(sum.median_tightness, 1);
    EXPECT_LE(sum.no_bound, 1);
    EXPECT_GE(sum.caught + sum.damaged_uncertain + sum.damaged_right, 5);
    EXPECT_GE(sum.caught,
              2);  // short unrolls of ill-conditioned problems are nearly their direct term, and damage to the rest is small
    EXPECT_LE(sum.false_alarms, 1);
    EXPECT_EQ(sum.missed_errors, 0);
  }
}

}  // namespace
}  // namespace bilevel
