#include "bilevel/run/driver.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "bilevel/core/error.h"

namespace bilevel {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// x ← x − outer_scale · 1, F = x; the record is not finite where x has gone below `cliff`, and there `needs` is the damping that
/// makes it finite again.
class Slide final : public Algorithm {
 public:
  explicit Slide(double cliff = -1e9, double needs = 1e9) : cliff_(cliff), needs_(needs) {}
  std::string_view name() const override { return "slide"; }
  State init() const override {
    State state;
    state.set("x", at::zeros({1}, at::kDouble));
    state.set("y", at::zeros({1}, at::kDouble));
    state.set("step", int64_t{0});
    return state;
  }
  Record evaluate(State& state) const override {
    const double x = state.tensor("x").item<double>();
    const double damping = state.has("damping") ? state.number("damping") : 0.0;
    state.tensor("y").fill_(x);  // in place: what the driver keeps must not change with it
    Record record;
    record.step = state.integer("step");
    record.outer_loss = x < cliff_ && damping < needs_ ? kNaN : x;
    record.cost.gradients = 3;
    record.grade = record.step == 2 ? Grade::kWarn : Grade::kOk;
    return record;
  }
  Record step(State& state, int64_t) const override {
    Record record = evaluate(state);
    state.tensor("x").sub_(state.has("outer_scale") ? state.number("outer_scale") : 1.0);
    state.set("step", state.integer("step") + 1);
    return record;
  }

 private:
  double cliff_, needs_;
};

struct Log {
  std::vector<Record> records;
  std::vector<RollBack> backs;
  std::vector<State> checkpoints;
  Watch watch() {
    Watch watch;
    watch.record = [this](const Record& record, const std::vector<RollBack>& since) {
      records.push_back(record);
      backs.insert(backs.end(), since.begin(), since.end());
      return signal(record);
    };
    watch.checkpoint = [this](const State& state) { checkpoints.push_back(state.clone()); };
    return watch;
  }
  std::function<Signal(const Record&)> signal = [](const Record&) { return Signal::kContinue; };
};

DriverOptions steps(int64_t n) {
  DriverOptions options;
  options.steps = n;
  options.checkpoint_every = 1;
  return options;
}

TEST(Driver, RecordsXAfterEachNumberOfUpdatesFromZeroToAll) {
  const Slide slide;
  Log log;
  const RunResult result = Driver(slide, steps(4)).run(slide.init(), log.watch());
  ASSERT_EQ(log.records.size(), 5u);
  for (int64_t k = 0; k <= 4; ++k) {
    EXPECT_EQ(log.records[static_cast<size_t>(k)].step, k);
    EXPECT_EQ(log.records[static_cast<size_t>(k)].outer_loss, -static_cast<double>(k));
  }
  EXPECT_EQ(result.outcome, Outcome::kDone);
  EXPECT_EQ(result.steps, 4);
  EXPECT_EQ(result.worst, Grade::kWarn);
  EXPECT_EQ(result.state.tensor("x").item<double>(), -4);
  EXPECT_EQ(result.state.tensor("y").item<double>(), -4) << "y is the inner solution at the final x";
  EXPECT_EQ(result.cost.gradients, 15);
}

TEST(Driver, ContinuesFromEachOfItsCheckpointsToTheSameRecords) {
  for (const double cliff : {-1e9, -2.6}) {  // without and with roll-backs
    const Slide slide(cliff, 0.005);
    Log whole;
    const RunResult expected = Driver(slide, steps(6)).run(slide.init(), whole.watch());
    ASSERT_EQ(whole.records.size(), 7u);
    for (const State& checkpoint : whole.checkpoints) {
      Log rest;
      const RunResult result = Driver(slide, steps(6)).run(checkpoint.clone(), rest.watch());
      const auto kept = static_cast<size_t>(checkpoint.has("driver.recorded") ? checkpoint.integer("driver.recorded") : 0);
      ASSERT_EQ(kept + rest.records.size(), whole.records.size());
      for (size_t i = kept; i < whole.records.size(); ++i) {
        EXPECT_EQ(rest.records[i - kept].step, whole.records[i].step);
        EXPECT_EQ(rest.records[i - kept].outer_loss, whole.records[i].outer_loss);
      }
      EXPECT_TRUE(at::equal(result.state.tensor("x"), expected.state.tensor("x")));
      EXPECT_EQ(result.cost.gradients, expected.cost.gradients);
      EXPECT_EQ(result.worst, expected.worst);
      EXPECT_EQ(result.rollbacks, expected.rollbacks);
    }
  }
}

TEST(Driver, RollsBackHalvesTheStepAndRaisesTheDampingUntilTheRecordIsFinite) {
  const Slide slide(/*cliff=*/-2.6);  // -3 fails; from -2 a half step to -2.5 is good, the next to -3 is not, -2.75 neither, …
  Log log;
  DriverOptions options = steps(3);
  const RunResult result = Driver(slide, options).run(slide.init(), log.watch());
  EXPECT_EQ(result.outcome, Outcome::kDone);
  EXPECT_EQ(result.rollbacks, 1);
  EXPECT_EQ(result.last.outer_loss, -2.5);
  ASSERT_EQ(log.records.size(), 4u) << "each step is recorded once";
  ASSERT_EQ(log.backs.size(), 1u);
  EXPECT_EQ(log.backs[0].from, 3);
  EXPECT_EQ(log.backs[0].to, 2);
  EXPECT_EQ(log.backs[0].outer_scale, 0.5);
  EXPECT_EQ(log.backs[0].damping, 1e-3);
  EXPECT_NE(log.backs[0].reason.find("step 3"), std::string::npos);
}

TEST(Driver, GivesUpAfterTheAllowedRollBacksAtTheLastGoodPoint) {
  const Slide slide(/*cliff=*/-2.6);
  Log log;
  const RunResult result = Driver(slide, steps(50)).run(slide.init(), log.watch());
  EXPECT_EQ(result.outcome, Outcome::kDiverged);
  EXPECT_EQ(result.worst, Grade::kBad);
  EXPECT_EQ(result.rollbacks, 3);
  EXPECT_GE(result.state.tensor("x").item<double>(), -2.6);
  EXPECT_TRUE(at::equal(result.state.tensor("x"), result.state.tensor("y")));
  EXPECT_TRUE(std::isnan(log.records.back().outer_loss));
}

TEST(Driver, DoesNotRollBackFromTheFirstPoint) {
  const Slide slide(/*cliff=*/1.0);
  const RunResult result = Driver(slide, steps(5)).run(slide.init());
  EXPECT_EQ(result.outcome, Outcome::kDiverged);
  EXPECT_EQ(result.rollbacks, 0);
  EXPECT_EQ(result.state.tensor("x").item<double>(), 0.0);
}

TEST(Driver, ObeysItsCallbacks) {
  const Slide slide;
  Log stop, abort;
  stop.signal = [](const Record& record) { return record.step == 2 ? Signal::kStop : Signal::kContinue; };
  abort.signal = [](const Record& record) { return record.step == 2 ? Signal::kAbort : Signal::kContinue; };
  const RunResult stopped = Driver(slide, steps(9)).run(slide.init(), stop.watch());
  EXPECT_EQ(stopped.outcome, Outcome::kStopped);
  EXPECT_EQ(stop.records.back().step, 3) << "the point after the last update is described";
  const RunResult aborted = Driver(slide, steps(9)).run(slide.init(), abort.watch());
  EXPECT_EQ(aborted.outcome, Outcome::kAborted);
  EXPECT_EQ(abort.records.back().step, 2);
}

TEST(Driver, StopsWhenABudgetOfOracleCallsIsSpentAlsoAfterAResumption) {
  const Slide slide;
  DriverOptions options = steps(100);
  options.oracle_calls = 10;  // three a step: spent after the fourth
  Log log, rest;
  const RunResult result = Driver(slide, options).run(slide.init(), log.watch());
  EXPECT_EQ(result.outcome, Outcome::kBudget);
  EXPECT_EQ(result.steps, 4);
  const RunResult again = Driver(slide, options).run(log.checkpoints.at(2).clone(), rest.watch());
  EXPECT_EQ(again.outcome, Outcome::kBudget);
  EXPECT_EQ(again.steps, 4);
}

TEST(Driver, WritesACheckpointWhenItIsInterrupted) {
  const Slide slide;
  std::atomic<bool> interrupt = false;
  Log log;
  Watch watch = log.watch();
  watch.interrupt = &interrupt;
  log.signal = [&](const Record& record) {
    if (record.step == 5) interrupt = true;
    return Signal::kContinue;
  };
  DriverOptions options = steps(9);
  options.checkpoint_every = 100;
  const RunResult result = Driver(slide, options).run(slide.init(), watch);
  EXPECT_EQ(result.outcome, Outcome::kInterrupted);
  ASSERT_EQ(log.checkpoints.size(), 1u);
  EXPECT_EQ(log.checkpoints[0].integer("step"), 5) << "the state before the last good step";
}

TEST(Driver, RefusesSenselessOptions) {
  DriverOptions options;
  options.steps = -1;
  EXPECT_THROW(Driver(Slide(), options), Error);
}

}  // namespace
}  // namespace bilevel
