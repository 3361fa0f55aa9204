#include <gtest/gtest.h>

#include "bench/certificate_study.h"

namespace bilevel {
namespace {

// The small version of the study of docs/certificates.md, on seeds that neither of its two parts has.
TEST(Certificates, HoldOnSixtyRandomProblems) {
  std::vector<CertificateCase> cases;
  for (int64_t seed = 20000; seed < 20060; ++seed) cases.push_back(certificate_case(seed));
  const CertificateSummary sum = summarise(cases);
  EXPECT_EQ(sum.damaged, 20);
  EXPECT_GE(sum.bounds, 30);
  EXPECT_EQ(sum.bounds_held, sum.bounds);
  // The median of so few scatters: half of the study's ratios are below 1.4 and a third above 20. The share within ten is 0.63 there,
  // and three standard errors of it for forty cases are 0.23.
  EXPECT_GE(sum.share_within_ten, 0.40);
  EXPECT_GE(sum.median_tightness, 1);
  EXPECT_LE(sum.no_bound, 1);
  EXPECT_GE(sum.caught + sum.damaged_uncertain, 19);
  EXPECT_GE(sum.caught, 18);
  EXPECT_LE(sum.false_alarms, 1);
  EXPECT_EQ(sum.missed_errors, 0);
}

}  // namespace
}  // namespace bilevel
