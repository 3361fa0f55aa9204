#include "bilevel/report/plan_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "bilevel/report/terminal.h"

namespace bilevel::plan_report_test {
namespace {

using testing::HasSubstr;

Plan example() {
  Plan plan;
  plan.steps = 60;
  plan.limit = 1 << 30;
  Forecast own, other;
  own.name = "as configured";
  own.measured = true;
  own.probes = 2;
  own.step.seconds = 1.5;
  own.seconds = 91.5;
  own.bytes = int64_t{3} << 30;
  own.fits = false;
  other.name = "memory = \"states\"";
  other.sets = {"hypergradient.memory=\"states\"", "hypergradient.steps=5", "inner.batch=64"};
  other.step.seconds = 2.5;
  other.seconds = 152.5;
  plan.forecasts = {own, other};
  plan.choice = 1;
  plan.advice = "Take the states.";
  return plan;
}

TEST(PlanReport, ShowsEveryWayAndMarksTheChoice) {
  const std::string text = render_terminal(plan_report(example(), "net.toml"), 120);
  EXPECT_THAT(text, HasSubstr("Take the states."));
  EXPECT_THAT(text, HasSubstr("1 min 32 s"));
  EXPECT_THAT(text, HasSubstr("does not fit"));
  EXPECT_THAT(text, HasSubstr("▶ memory"));
}

TEST(PlanReport, GivesTheLinesOfTheChoiceByTable) {
  EXPECT_EQ(planned_toml(example()), "[hypergradient]\nmemory = \"states\"\nsteps = 5\n[inner]\nbatch = 64\n");
  Plan plan = example();
  plan.choice = 0;
  EXPECT_EQ(planned_toml(plan), "") << "nothing is to be changed";
  plan.choice.reset();
  EXPECT_EQ(planned_toml(plan), "");
}

TEST(PlanReport, WritesJson) {
  const auto json = nlohmann::json::parse(plan_json(example(), 0.25));
  EXPECT_EQ(json["configured"]["total"]["seconds"], 91.5);
  EXPECT_EQ(json["choice"]["step"]["seconds"], 2.5);
  EXPECT_EQ(json["load_seconds"], 0.25);
  EXPECT_EQ(json["memory_limit"], 1 << 30);
  EXPECT_EQ(json["forecasts"].size(), 2u);
}

}  // namespace
}  // namespace bilevel::plan_report_test
