#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <ostream>

#include "tasks/selftest.h"

namespace bilevel {

void PrintTo(const Check& check, std::ostream* os) { *os << check.name; }

namespace {

class Outside : public ::testing::TestWithParam<Check> {};

TEST_P(Outside, NumbersAreReproduced) {
  const CheckResult result = run_check(GetParam());
  EXPECT_TRUE(result.passed) << GetParam().source << "\n" << result.detail;
  RecordProperty("detail", result.detail);
}

INSTANTIATE_TEST_SUITE_P(Verification, Outside, ::testing::ValuesIn(outside_checks()), [](const auto& check) {
  std::string name = check.param.name;
  std::replace_if(
      name.begin(), name.end(), [](unsigned char c) { return std::isalnum(c) == 0; }, '_');
  return name;
});

}  // namespace
}  // namespace bilevel
