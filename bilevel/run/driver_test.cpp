#include "bilevel/run/driver.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "bilevel/core/error.h"
#include "bilevel/oracle/processes.h"

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
  Record step(State& state, int64_t n) const override {
    Record record = evaluate(state);
    state.tensor("x").sub_(static_cast<double>(n) * (state.has("outer_scale") ? state.number("outer_scale") : 1.0));
    state.set("step", state.integer("step") + n);
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

TEST(Driver, RecordsEveryNthUpdateAndTheLast) {
  const Slide slide;
  DriverOptions options = steps(7);
  options.record_every = 3;
  Log whole;
  const RunResult expected = Driver(slide, options).run(slide.init(), whole.watch());
  std::vector<int64_t> recorded;
  for (const Record& record : whole.records) recorded.push_back(record.step);
  EXPECT_EQ(recorded, (std::vector<int64_t>{0, 3, 6, 7}));
  EXPECT_EQ(whole.records.back().outer_loss, -7);
  EXPECT_EQ(expected.steps, 7);
  for (const State& checkpoint : whole.checkpoints) {
    Log rest;
    Driver(slide, options).run(checkpoint.clone(), rest.watch());
    const auto kept = static_cast<size_t>(checkpoint.integer("driver.recorded"));
    ASSERT_EQ(kept + rest.records.size(), whole.records.size());
    for (size_t i = kept; i < whole.records.size(); ++i) EXPECT_EQ(rest.records[i - kept].step, whole.records[i].step);
  }
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

TEST(Driver, EndsWhereAnotherProcessIsInterruptedOrHasSpentItsTime) {
  const Slide slide;
  DriverOptions options = steps(9);
  options.checkpoint_every = 100;
  options.seconds = 5;
  int64_t asked = 0;
  Log log;
  Watch watch = log.watch();
  watch.greatest = [&](double number) { return ++asked == 7 ? 1.0 : number; };  // before each step, and after
  const RunResult interrupted = Driver(slide, options).run(slide.init(), watch);
  EXPECT_EQ(interrupted.outcome, Outcome::kInterrupted);
  ASSERT_EQ(log.checkpoints.size(), 1u);
  EXPECT_EQ(log.checkpoints[0].integer("step"), 2);
  asked = 0;
  watch.greatest = [&](double number) { return ++asked == 6 ? 6.0 : number; };
  const RunResult spent = Driver(slide, options).run(slide.init(), watch);
  EXPECT_EQ(spent.outcome, Outcome::kBudget);
  EXPECT_EQ(spent.steps, 3);
}

/// Loses another process once, at one step.
class Losing final : public Algorithm {
 public:
  std::string_view name() const override { return "losing"; }
  State init() const override { return Slide().init(); }
  Record evaluate(State& state) const override { return Slide().evaluate(state); }
  Record step(State& state, int64_t n) const override {
    if (state.integer("step") == 4 && !lost_) {
      lost_ = true;
      throw LostProcess("gone");
    }
    return Slide().step(state, n);
  }

 private:
  mutable bool lost_ = false;
};

TEST(Driver, LeavesACheckpointWhereAProcessIsLost) {
  const Losing losing;
  const Slide slide;
  DriverOptions options = steps(9);
  options.checkpoint_every = 100;
  Log log, rest;
  EXPECT_THROW(Driver(losing, options).run(losing.init(), log.watch()), LostProcess);
  ASSERT_EQ(log.checkpoints.size(), 1u);
  const RunResult resumed = Driver(losing, options).run(log.checkpoints[0], rest.watch());
  const RunResult uninterrupted = Driver(slide, options).run(slide.init());
  EXPECT_TRUE(at::equal(resumed.state.tensor("x"), uninterrupted.state.tensor("x")));
  EXPECT_EQ(log.checkpoints[0].integer("driver.recorded") + static_cast<int64_t>(rest.records.size()), 10) << "none is missing";
}

/// x ← x − outer_scale; F = x. Where x has gone below −5 and more than `least_damping` is missing, `spoil` changes the record.
class Spoiled final : public Algorithm {
 public:
  Spoiled(std::function<void(Record&)> spoil, double least_damping = 1e9, double cliff = -5.1)
      : spoil_(std::move(spoil)), least_damping_(least_damping), cliff_(cliff) {}
  std::string_view name() const override { return "spoiled"; }
  State init() const override { return Slide().init(); }
  Record evaluate(State& state) const override {
    const double x = state.tensor("x").item<double>();
    Record record;
    record.step = state.integer("step");
    record.outer_loss = x;
    record.inner_loss = 1 + 0.1 * std::cos(x);
    record.stationarity = 1e-3 * (2 + std::sin(x));
    record.hypergradient_norm = 1 + 0.5 * std::sin(x);
    if (x < cliff_ && (state.has("damping") ? state.number("damping") : 0.0) < least_damping_) spoil_(record);
    return record;
  }
  Record step(State& state, int64_t) const override {
    Record record = evaluate(state);
    state.set("x", state.tensor("x") - (state.has("outer_scale") ? state.number("outer_scale") : 1.0));
    state.set("step", state.integer("step") + 1);
    return record;
  }

 private:
  std::function<void(Record&)> spoil_;
  double least_damping_, cliff_;
};

void explode(Record& record) { record.hypergradient_norm = 5e3; }
void lose_inner(Record& record) { record.inner_loss = 50, record.stationarity = 3; }

TEST(Driver, RollsBackWhereTheHypergradientExplodes) {
  const Spoiled algorithm(explode, /*least_damping=*/0.005);
  Log log;
  const RunResult result = Driver(algorithm, steps(8)).run(algorithm.init(), log.watch());
  EXPECT_EQ(result.outcome, Outcome::kDone);
  EXPECT_EQ(result.steps, 8);
  // From −5 by a step of ½ to −5.5, which explodes again; from −5 by ¼ to −5.25 with enough damping.
  ASSERT_EQ(log.backs.size(), 2u);
  EXPECT_NE(log.backs[0].reason.find("exploded at step 6"), std::string::npos) << log.backs[0].reason;
  EXPECT_NE(log.backs[0].reason.find("5e+03"), std::string::npos) << log.backs[0].reason;
  EXPECT_EQ(log.backs[1].damping, 1e-2);
  EXPECT_EQ(log.records.size(), 9u);
}

TEST(Driver, AnExplosionIsMeasuredAgainstTheMedianAndAllThatWasSeenBefore) {
  const Spoiled mild([](Record& record) { record.hypergradient_norm = 700; });
  EXPECT_EQ(Driver(mild, steps(8)).run(mild.init()).rollbacks, 0) << "below a thousand medians";
  DriverOptions strict = steps(8);
  strict.explosion = 100;
  EXPECT_EQ(Driver(mild, strict).run(mild.init()).rollbacks, 3);
  strict.explosion = 0;
  EXPECT_EQ(Driver(mild, strict).run(mild.init()).rollbacks, 0);
  // A run that has converged: its norms are rounding, and jump.
  const Spoiled converged([](Record& record) { record.hypergradient_norm = record.step == 30 ? 1e-4 : 1e-12; });
  EXPECT_EQ(Driver(converged, steps(40)).run(converged.init()).rollbacks, 0);
  // With two records before it there is no median.
  const Spoiled early(explode, 1e9, /*cliff=*/-1.1);
  EXPECT_EQ(Driver(early, steps(2)).run(early.init()).rollbacks, 0);
}

TEST(Driver, RollsBackWhereTheInnerLossRisesAndTheSolveIsLostButNotWhereXAsksForIt) {
  const Spoiled lost(lose_inner, 0.005);
  Log log;
  const RunResult result = Driver(lost, steps(8)).run(lost.init(), log.watch());
  EXPECT_EQ(result.outcome, Outcome::kDone);
  ASSERT_EQ(log.backs.size(), 2u);
  EXPECT_NE(log.backs[0].reason.find("the inner loss rose at step 6 to 50"), std::string::npos) << log.backs[0].reason;
  const Spoiled asked([](Record& record) { record.inner_loss = 50; });
  EXPECT_EQ(Driver(asked, steps(8)).run(asked.init()).rollbacks, 0) << "solved as well as ever";
  DriverOptions never = steps(8);
  never.inner_rise = 0;
  EXPECT_EQ(Driver(lost, never).run(lost.init()).rollbacks, 0);
}

TEST(Driver, ChangesWhatItsPolicySays) {
  const Spoiled algorithm(explode, 0.005);
  DriverOptions options = steps(7);
  options.on_divergence = OnDivergence::kShrink;
  Log shrink;
  const RunResult shrunk = Driver(algorithm, options).run(algorithm.init(), shrink.watch());
  EXPECT_EQ(shrunk.outcome, Outcome::kDiverged) << "no step is small enough for long";
  for (const RollBack& back : shrink.backs) EXPECT_EQ(back.damping, 0.0);
  EXPECT_FALSE(shrunk.state.has("damping") && shrunk.state.number("damping") > 0);
  EXPECT_EQ(shrink.backs.back().outer_scale, 0.125);

  options.on_divergence = OnDivergence::kDamp;
  Log damp;
  const RunResult damped = Driver(algorithm, options).run(algorithm.init(), damp.watch());
  EXPECT_EQ(damped.outcome, Outcome::kDone);
  EXPECT_EQ(damped.last.outer_loss, -7) << "no step was shortened";
  ASSERT_EQ(damp.backs.size(), 2u);
  EXPECT_EQ(damp.backs[1].outer_scale, 1.0);
  EXPECT_EQ(damp.backs[1].damping, 1e-2);

  options.on_divergence = OnDivergence::kStop;
  const RunResult stopped = Driver(algorithm, options).run(algorithm.init());
  EXPECT_EQ(stopped.outcome, Outcome::kDiverged);
  EXPECT_EQ(stopped.rollbacks, 0);
  EXPECT_EQ(stopped.worst, Grade::kBad);
  EXPECT_EQ(stopped.state.tensor("x").item<double>(), -5) << "the last good point";
  EXPECT_NE(stopped.message.find("exploded at step 6"), std::string::npos) << stopped.message;
}

TEST(Driver, ContinuesBitForBitThroughItsRollBacksFromEveryCheckpoint) {
  for (const auto& spoil : {explode, lose_inner}) {
    const Spoiled algorithm(spoil, 0.005);
    Log whole;
    const RunResult expected = Driver(algorithm, steps(9)).run(algorithm.init(), whole.watch());
    ASSERT_EQ(expected.rollbacks, 2);
    ASSERT_GE(whole.checkpoints.size(), 8u);
    for (const State& checkpoint : whole.checkpoints) {
      Log rest;
      const RunResult result = Driver(algorithm, steps(9)).run(checkpoint.clone(), rest.watch());
      const auto kept = static_cast<size_t>(checkpoint.integer("driver.recorded"));
      ASSERT_EQ(kept + rest.records.size(), whole.records.size());
      for (size_t i = kept; i < whole.records.size(); ++i) {
        EXPECT_EQ(rest.records[i - kept].outer_loss, whole.records[i].outer_loss);
      }
      ASSERT_LE(rest.backs.size(), whole.backs.size());
      for (size_t i = 1; i <= rest.backs.size(); ++i) {
        EXPECT_EQ(rest.backs[rest.backs.size() - i].reason, whole.backs[whole.backs.size() - i].reason);
      }
      for (const auto& [name, value] : expected.state.values()) {
        if (name == "driver.seconds") continue;
        ASSERT_TRUE(result.state.has(name)) << name;
        if (const auto* tensor = std::get_if<at::Tensor>(&value)) {
          EXPECT_TRUE(at::equal(*tensor, result.state.tensor(name))) << name;
        } else if (const auto* integer = std::get_if<int64_t>(&value)) {
          EXPECT_EQ(*integer, result.state.integer(name)) << name;
        } else if (const auto* number = std::get_if<double>(&value)) {
          EXPECT_EQ(*number, result.state.number(name)) << name;
        }
      }
    }
  }
}

TEST(Driver, RefusesSenselessOptions) {
  DriverOptions factor;
  factor.explosion = 0.5;
  EXPECT_THROW(Driver(Slide(), factor), Error);

  DriverOptions options;
  options.steps = -1;
  EXPECT_THROW(Driver(Slide(), options), Error);
}

}  // namespace
}  // namespace bilevel
